"""Where a pair's CPU time goes at saturation, by thread, for a reply of the store; one request deep, and 16."""

import os

import network
from measure import Row, median
from pair import Pair, lab
from topics import kv

NAME = "threads"
MODES = ("run", "none", "colo", "colo++")
DEPTHS = {1: "", 16: "pipelined_"}


def name(side, mode, depth):
    return f"kv95_{DEPTHS[depth]}{side}_us_a_reply_{mode.replace('+', 'p')}"


ROWS = [name(side, mode, depth) for depth in DEPTHS for mode in MODES for side in ("primary", "secondary")
        if (mode, side) != ("run", "secondary")]


def threads(process):
    """CPU nanoseconds and context switches of each thread until now, by name."""
    folder, found = f"/proc/{process.pid}/task", {}
    for each in os.listdir(folder):
        try:
            with open(f"{folder}/{each}/comm") as comm, open(f"{folder}/{each}/schedstat") as times, open(
                    f"{folder}/{each}/status") as status:
                switches = sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
                thread, used = comm.read().strip(), int(times.read().split()[0])
        except OSError:  # has ended
            continue
        before = found.get(thread, (0, 0))
        found[thread] = (before[0] + used, before[1] + switches)
    return found


def measure(options, pair, depth, seconds):
    """Replies a second, and by side what each thread used for one: microseconds and switches, the most first."""
    kv.load(options, pair, depth, 1)
    sides = {"primary": pair.primary, "secondary": pair.secondary}
    before = {side: threads(each.process) for side, each in sides.items() if each}
    load = kv.load(options, pair, depth, seconds)
    result = {}
    for side, old in before.items():
        now, count = threads(sides[side].process), load["replies"]
        used = {thread: [(a - b) / count for a, b in zip(now[thread], old.get(thread, (0, 0)))] for thread in now}
        result[side] = sorted(((thread, time / 1000, switches) for thread, (time, switches) in used.items()),
                              key=lambda each: -each[1])
    return load["per_second"], result


def run(options):
    results = {(mode, depth): [] for depth in DEPTHS for mode in MODES}
    with network.Bridge() as space:
        for _ in range(1 if options.quick else 3):
            for mode in MODES:
                with Pair(options, space, mode, lab(options, "service=kv")) as pair:
                    pair.wait_until_protected()
                    for depth in DEPTHS:
                        results[mode, depth].append(measure(options, pair, depth, 3 if options.quick else 5))
    rows = []
    for (mode, depth), runs in results.items():
        rate = median(each[0] for each in runs)
        for side in runs[0][1]:
            total = median(sum(time for _, time, _ in used[side]) for _, used in runs)
            parts = ", ".join(f"{thread} {time:.2f} ({switches:.3f} switches)" for thread, time, switches in runs[-1][1][side]
                              if time > 0.01 * total)
            rows.append(Row(name(side, mode, depth), total, "µs", f"{rate:.0f}/s: {parts}", len(runs)))
    return rows
