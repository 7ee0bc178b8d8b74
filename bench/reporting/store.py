"""The lab guest's store over TCP, 50 connections, by read share and mode."""

import network
from measure import Row, median, noting, quartiles
from pair import Pair, lab
from reporting import modes, svg
from topics import kv

NAME = "store"
TITLE = "The store over TCP"
SHARES = (100, 95, 80, 50)
TEXT = """The lab guest's store, 50 connections, one request each, values of 64 bytes. At saturation each connection asks again
as soon as it has its reply; at half load, requests come at half the rate that mode <i>none</i> had in the same round, and a
request's latency counts from when it was due. <i>none</i> is a pair that holds nothing back. Each round measures every mode for a
few seconds: this machine differs more from minute to minute than the modes do, so many short rounds tell more than a few long ones."""


def measure(options, tell):
    seconds, rounds = (2, 1) if options.quick else (3, 7)
    results = {str(reads): {mode: {"full": [], "half": []} for mode in modes.MODES} for reads in SHARES}
    with network.Bridge() as space:
        for turn in range(rounds):
            for reads in SHARES:
                for mode in modes.MODES:
                    tell(f"{reads} % reads, {mode}, round {turn + 1} of {rounds}")
                    with Pair(options, space, mode, lab(options, "service=kv")) as pair:
                        pair.wait_until_protected()
                        mine = results[str(reads)]
                        mine[mode]["full"].append(noting(lambda: kv.load(options, pair, 1, seconds, reads=reads)))
                        rate = mine["none"]["full"][-1]["per_second"] / 2
                        half = noting(lambda: kv.load(options, pair, 1, seconds, rate, reads))
                        mine[mode]["half"].append({**half, "rate": rate})
    return results


def ratios(data, reads, mode, load, what, base="none"):
    return [a[what] / b[what] for a, b in zip(data[str(reads)][mode][load], data[str(reads)][base][load])]


def middle(data, reads, mode, load, what):
    return median(each[what] for each in data[str(reads)][mode][load])


def figures(data):
    rows = []
    for reads in SHARES:
        for mode in modes.MODES[1:]:
            parts = ratios(data, reads, mode, "full", "per_second")
            rows.append(Row(f"kv{reads}_throughput_vs_none_{modes.name(mode)}", median(parts), "×",
                            f"{middle(data, reads, mode, 'full', 'per_second'):.0f}/s; none "
                            f"{middle(data, reads, 'none', 'full', 'per_second'):.0f}/s", len(parts),
                            ">= 0.95" if (reads, mode) == (95, "colo++") else None))
            halves = data[str(reads)][mode]["half"]
            key = f"kv{reads}_p99_half_load_vs_none_{modes.name(mode)}"
            if kv.sustained(halves) and kv.sustained(data[str(reads)]["none"]["half"]):
                rows.append(Row(key, median(ratios(data, reads, mode, "half", "p99")), "×",
                                f"{middle(data, reads, mode, 'half', 'p99') / 1000:.2f} ms; none "
                                f"{middle(data, reads, 'none', 'half', 'p99') / 1000:.2f} ms", len(halves),
                                "<= 1.15" if (reads, mode) == (95, "colo++") else None))
            else:
                rows.append(Row(key, None, "", f"half of none's load, {median(each['rate'] for each in halves):.0f}/s, is not "
                                f"sustained: {median(each['per_second'] for each in halves):.0f}/s"))
        parts = ratios(data, reads, "colo++", "full", "per_second", "colo")
        rows.append(Row(f"kv{reads}_throughput_colopp_vs_colo", median(parts), "×", "never below colo", len(parts), ">= 1"))
    return rows


def main_plot(data, alone=False):
    groups = []
    for reads in SHARES:
        bars = []
        for mode in modes.MODES[1:]:
            parts = ratios(data, reads, mode, "full", "per_second")
            bars.append((mode, median(parts), *quartiles(parts)))
        groups.append((f"{reads} % reads", f"none: {svg.number(middle(data, reads, 'none', 'full', 'per_second'))}/s", bars))
    rounds = len(data[str(SHARES[0])]["none"]["full"])
    spread = f"median of {rounds} rounds, lines: the middle half of them" if rounds > 1 else "measured once"
    return svg.bars("What protection costs: throughput by mode and share of reads",
                    f"replies a second at saturation ÷ those of a pair that holds nothing back (none); {spread}",
                    groups, "throughput ÷ none", reference=(1, "none"), target=(1, 0.95, "target of colo++: 0.95"), alone=alone)


def latency_plot(data, load, title, subtitle):
    groups = []
    for reads in SHARES:
        marks = []
        for mode in modes.MODES:
            runs = data[str(reads)][mode][load]
            kept = load == "full" or kv.sustained(runs)
            values = [median(each[what] for each in runs) / 1000 for what in ("p50", "p99", "p999")]
            marks.append((mode, values if kept else None, "" if kept else "not sustained"))
        groups.append((f"{reads} % reads", marks))
    return svg.quantiles(title, subtitle, groups, "milliseconds", ("p50", "p99", "p99.9"))


def plots(data):
    shares = [each["taken"] for modes in data.values() for loads in modes.values() for runs in loads.values() for each in runs]
    return [
        (main_plot(data), "<i>remus</i> holds every reply until the next checkpoint, every 100 ms, so that 50 "
         "connections get at most 500 replies a second whatever the host can do. This machine's own host took "
         f"{median(shares):.1%} of its CPU time away, {max(shares):.1%} in the worst run."),
        (latency_plot(data, "half", "Latency at half load", "time from when a request was due to its reply; log scale"),
         "At half load a server is not short of CPU: what is longer than <i>none</i> is what replies wait for."),
        (latency_plot(data, "full", "Latency at saturation", "time from request to reply; log scale"),
         "At saturation latency is 50 connections ÷ throughput, more or less."),
    ]
