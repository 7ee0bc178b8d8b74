"""The lab guest's store over TCP, 95 % reads, 50 connections, by mode."""

import json

import network
from measure import Row, median
from pair import Pair, lab

NAME = "kv"
LONGER = "colo++ 1s"  # with ten times fewer checkpoints
MODES = ("none", "run", "remus", "colo", "colo++", LONGER)  # the first sets the rate of the half load
# Least throughput, and longest p99 at half load, as parts of none's.
TARGETS = {"remus": (None, None), "colo": (">= 0.8", None), "colo++": (">= 0.95", "<= 1.15"), LONGER: (">= 0.95", "<= 1.15")}
ROWS = [f"kv95_{what}_vs_none_{mode.replace('+', 'p').replace(' ', '_')}" for mode in TARGETS for what in ("throughput", "pipelined", "p99", "read_p99")]
ROWS += ["kv95_throughput_none_vs_run"]
SUSTAINED = 0.95  # of the requests that are due; below that a latency only says how long the run was


def load(options, pair, depth, seconds, rate=0, reads=95):
    return json.loads(pair.client([f"{options.programs}/kv_load", network.GUEST, "6379", "50", str(depth), str(reads),
                                   str(seconds), f"{rate:.0f}"], seconds * 3 + 20))


def sustained(halves):
    """Whether the requests that were due were answered, in most rounds."""
    return median(each["per_second"] / each["rate"] for each in halves) >= SUSTAINED


def run(options):
    seconds = 2 if options.quick else 3
    full = {mode: [] for mode in MODES}
    piped = {mode: [] for mode in MODES}
    half = {mode: [] for mode in MODES}
    with network.Bridge() as space:
        for _ in range(1 if options.quick else 5):
            for mode in MODES:
                with Pair(options, space, mode.split()[0], lab(options, "service=kv"),
                          period="1s" if mode == LONGER else "100ms") as pair:
                    pair.wait_until_protected()
                    full[mode].append(load(options, pair, 1, seconds))
                    piped[mode].append(load(options, pair, 16, seconds))
                    rate = full["none"][-1]["per_second"] / 2
                    half[mode].append({**load(options, pair, 1, seconds, rate), "rate": rate})
    runs = len(full["none"])

    def ratio(results, mode, what, base="none"):
        return median(a[what] / b[what] for a, b in zip(results[mode], results[base]))

    def told(results, mode, what):
        return f"{median(each[what] for each in results[mode]):.0f}"

    rows = []
    for mode, (target, latency) in TARGETS.items():
        name = mode.replace("+", "p").replace(" ", "_")
        rows.append(Row(f"kv95_throughput_vs_none_{name}", ratio(full, mode, "per_second"), "×",
                        f"{told(full, mode, 'per_second')}/s; none {told(full, 'none', 'per_second')}/s; p50 "
                        f"{told(full, mode, 'p50')} µs, p99 {told(full, mode, 'p99')} µs; none {told(full, 'none', 'p50')}, "
                        f"{told(full, 'none', 'p99')}", runs, target))
        rows.append(Row(f"kv95_pipelined_vs_none_{name}", ratio(piped, mode, "per_second"), "×",
                        f"16 deep: {told(piped, mode, 'per_second')}/s; none {told(piped, 'none', 'per_second')}/s", runs,
                        target))
        if sustained(half[mode]) and sustained(half["none"]):
            rows.append(Row(f"kv95_p99_vs_none_{name}", ratio(half, mode, "p99"), "×",
                            f"half load: p50 {told(half, mode, 'p50')} µs, p99 {told(half, mode, 'p99')} µs; none "
                            f"{told(half, 'none', 'p50')}, {told(half, 'none', 'p99')}; p99 of reads {told(half, mode, 'read_p99')}, "
                            f"of writes {told(half, mode, 'write_p99')}; none {told(half, 'none', 'read_p99')}, "
                            f"{told(half, 'none', 'write_p99')}", runs, latency))
            rows.append(Row(f"kv95_read_p99_vs_none_{name}", ratio(half, mode, "read_p99"), "×", "reads alone, see above", runs))
        else:
            for what in ("p99", "read_p99"):
                rows.append(Row(f"kv95_{what}_vs_none_{name}", None, "", f"half of none's load, {told(half, mode, 'rate')}/s, is not "
                            f"sustained: {told(half, mode, 'per_second')}/s; none {told(half, 'none', 'per_second')}/s"))
    rows.append(Row("kv95_throughput_none_vs_run", ratio(full, "none", "per_second", "run"), "×",
                    f"run {told(full, 'run', 'per_second')}/s", runs))
    return rows
