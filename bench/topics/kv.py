"""The lab guest's store over TCP, 95 % reads, 50 connections, by mode."""

import json

import network
from measure import Row, median
from pair import Pair, lab

NAME = "kv"
MODES = ("run", "none", "remus", "colo")
ROWS = ["kv95_throughput_vs_none_remus", "kv95_throughput_vs_none_colo", "kv95_pipelined_vs_none_remus", "kv95_pipelined_vs_none_colo",
        "kv95_p99_vs_none_remus", "kv95_p99_vs_none_colo", "kv95_throughput_none_vs_run"]


def load(options, pair, depth, seconds, rate=0):
    return json.loads(pair.client([f"{options.programs}/kv_load", network.GUEST, "6379", "50", str(depth), "95",
                                   str(seconds), f"{rate:.0f}"], seconds * 3 + 20))


def run(options):
    seconds = 2 if options.quick else 5
    full = {mode: [] for mode in MODES}
    piped = {mode: [] for mode in MODES}
    half = {mode: [] for mode in MODES}
    with network.Bridge() as space:
        for _ in range(1 if options.quick else 3):
            rate = None
            for mode in MODES:
                with Pair(options, space, mode, lab(options, "service=kv")) as pair:
                    pair.wait_until_protected()
                    full[mode].append(load(options, pair, 1, seconds))
                    piped[mode].append(load(options, pair, 16, seconds))
                    rate = full["none"][-1]["per_second"] / 2 if full["none"] else full["run"][-1]["per_second"] / 2
                    half[mode].append(load(options, pair, 1, seconds, rate))
    runs = len(full["none"])

    def ratio(results, mode, what, base="none"):
        return median(a[what] / b[what] for a, b in zip(results[mode], results[base]))

    def told(results, mode, what):
        return f"{median(each[what] for each in results[mode]):.0f}"

    rows = []
    for mode, target in (("remus", None), ("colo", ">= 0.8")):
        rows.append(Row(f"kv95_throughput_vs_none_{mode}", ratio(full, mode, "per_second"), "×",
                        f"{told(full, mode, 'per_second')}/s; none {told(full, 'none', 'per_second')}/s; p50 "
                        f"{told(full, mode, 'p50')} µs, p99 {told(full, mode, 'p99')} µs; none {told(full, 'none', 'p50')}, "
                        f"{told(full, 'none', 'p99')}", runs, target))
        rows.append(Row(f"kv95_pipelined_vs_none_{mode}", ratio(piped, mode, "per_second"), "×",
                        f"16 deep: {told(piped, mode, 'per_second')}/s; none {told(piped, 'none', 'per_second')}/s", runs,
                        target))
        rows.append(Row(f"kv95_p99_vs_none_{mode}", ratio(half, mode, "p99"), "×",
                        f"half load: p50 {told(half, mode, 'p50')} µs, p99 {told(half, mode, 'p99')} µs; none "
                        f"{told(half, 'none', 'p50')}, {told(half, 'none', 'p99')}", runs))
    rows.append(Row("kv95_throughput_none_vs_run", ratio(full, "none", "per_second", "run"), "×",
                    f"run {told(full, 'run', 'per_second')}/s", runs))
    return rows
