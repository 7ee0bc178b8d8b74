"""Where the CPU time of a pair goes at saturation: each thread's, for a reply of the store, and how often it is switched."""

import os

import network
from measure import Row, median
from pair import Pair, lab
from topics import kv

NAME = "threads"
MODES = ("run", "none", "colo", "colo++")
ROWS = [f"kv95_{side}_us_a_reply_{mode.replace('+', 'p')}" for mode in MODES for side in ("primary", "secondary")
        if (mode, side) != ("run", "secondary")]


def threads(process):
    """CPU nanoseconds and context switches of each thread until now, by name."""
    folder, found = f"/proc/{process.pid}/task", {}
    for each in os.listdir(folder):
        try:
            with open(f"{folder}/{each}/comm") as comm, open(f"{folder}/{each}/schedstat") as times, open(
                    f"{folder}/{each}/status") as status:
                switches = sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
                name, used = comm.read().strip(), int(times.read().split()[0])
        except OSError:  # has ended
            continue
        before = found.get(name, (0, 0))
        found[name] = (before[0] + used, before[1] + switches)
    return found


def measure(options, space, mode, seconds):
    """Replies, and by side what each thread used for one: microseconds and switches, the most first."""
    with Pair(options, space, mode, lab(options, "service=kv")) as pair:
        pair.wait_until_protected()
        kv.load(options, pair, 1, 1)
        sides = {"primary": pair.primary, "secondary": pair.secondary}
        before = {side: threads(each.process) for side, each in sides.items() if each}
        load = kv.load(options, pair, 1, seconds)
        result = {}
        for side, old in before.items():
            now, count = threads(sides[side].process), load["replies"]
            used = {name: [(a - b) / count for a, b in zip(now[name], old.get(name, (0, 0)))] for name in now}
            result[side] = sorted(((name, time / 1000, switches) for name, (time, switches) in used.items()),
                                  key=lambda each: -each[1])
    return load["per_second"], result


def run(options):
    results = {mode: [] for mode in MODES}
    with network.Bridge() as space:
        for _ in range(1 if options.quick else 3):
            for mode in MODES:
                results[mode].append(measure(options, space, mode, 3 if options.quick else 5))
    rows = []
    for mode, runs in results.items():
        rate = median(each[0] for each in runs)
        for side in runs[0][1]:
            total = median(sum(time for _, time, _ in used[side]) for _, used in runs)
            parts = ", ".join(f"{name} {time:.1f} ({switches:.3f} switches)" for name, time, switches in runs[-1][1][side]
                              if time > 0.2)
            rows.append(Row(f"kv95_{side}_us_a_reply_{mode.replace('+', 'p')}", total, "µs", f"{rate:.0f}/s: {parts}", len(runs)))
    return rows
