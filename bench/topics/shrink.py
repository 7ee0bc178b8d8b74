"""A secondary that takes less of its host: three vCPUs on one spinlock beside one with the store, both sides on both cores."""

import json

import network
from measure import Row, median
from pair import Pair, cpu_seconds, lab, settle

NAME = "shrink"
LEVELS = ("off", "host", "guest")
ROWS = ["secondary_cpu_shrink_vs_off", "secondary_cpu_host_vs_off", "shrink_throughput_vs_off", "host_throughput_vs_off"]


def measure(options, space, level, seconds):
    """CPU milliseconds of the secondary for each reply that clients got, and replies a second."""
    words = f"service=kv,burn burn=seconds:{seconds + 60},inside:50,outside:500,spare:1"
    follower = ("--shrink", level, "--shrink-to", "1")
    guest = [*lab(options, words), "--cpus", "4"]
    with Pair(options, space, "colo++", guest, follower=follower, shared=True) as pair:
        pair.wait_until_protected()
        settle(1)
        before = cpu_seconds(pair.secondary.process)
        load = json.loads(pair.client([f"{options.programs}/kv_load", network.GUEST, "6379", "8", "1", "95", str(seconds), "0"],
                                      seconds * 3 + 20))
        used = cpu_seconds(pair.secondary.process) - before
    return {"cost": 1000 * used / load["replies"], "rate": load["per_second"], "p99": load["p99"] / 1000}


def run(options):
    results = {level: [] for level in LEVELS}
    with network.Bridge() as space:
        for _ in range(1 if options.quick else 3):
            for level in LEVELS:
                results[level].append(measure(options, space, level, 4 if options.quick else 8))
    return rows(results)


def rows(results):
    count = len(results["off"])

    def row(name, level, what, unit, target=None):
        mine, off = results[level], results["off"]
        return Row(name, median(a[what] / b[what] for a, b in zip(mine, off)), "×",
                   f"{level}: {median(each[what] for each in mine):.3g} {unit}; off "
                   f"{median(each[what] for each in off):.3g} {unit}", count, target)

    cpu, rate = "ms of the secondary's CPU a reply", "replies/s"
    return [row("secondary_cpu_shrink_vs_off", "guest", "cost", cpu, "<= 0.5"),
            row("secondary_cpu_host_vs_off", "host", "cost", cpu),
            row("shrink_throughput_vs_off", "guest", "rate", rate, ">= 1"),
            row("host_throughput_vs_off", "host", "rate", rate)]
