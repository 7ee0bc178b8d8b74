"""Four vCPUs, and a secondary that takes less of its host."""

import network
from measure import median
from reporting import svg
from topics import linux, shrink

NAME = "shrink"
TITLE = "A secondary that takes less"
TEXT = """A guest with four vCPUs: one serves the store, three fight for a spinlock. Both sides share the machine's cores, as
where a host is secondary of some guests and primary of others. With <i>off</i> the secondary runs all vCPUs; with <i>host</i>
their threads share one host CPU and the guest does not know; with <i>guest</i> the guest leaves all but one idle, with <i>auto</i> all but as many
as keep output from waiting. In Linux four threads share a mutex and never
rest: a secondary of four CPUs and one of one CPU both take what the host gives them."""


def measure(options, tell):
    results = {level: [] for level in (shrink.ALONE, *shrink.LEVELS)}
    in_linux = {level: [] for level in shrink.LINUX_LEVELS}
    names, reason = linux.files(options)
    rounds, seconds = (1, 4) if options.quick else (3, 8)
    with network.Bridge() as space:
        for turn in range(rounds):
            tell(f"without a pair, round {turn + 1} of {rounds}")
            results[shrink.ALONE].append(shrink.measure(options, space, shrink.ALONE, seconds))
            for level in shrink.LEVELS:
                tell(f"--shrink {level}, round {turn + 1} of {rounds}")
                results[level].append(shrink.measure(options, space, level, seconds))
                if names and level in shrink.LINUX_LEVELS:
                    tell(f"--shrink {level}, round {turn + 1} of {rounds}: Linux boots")
                    in_linux[level].append(shrink.measure_linux(options, space, names, level, 2 * seconds))
        if not names:
            tell(reason)
    return {**results, "linux": in_linux if names else None}


def figures(data):
    return shrink.rows(data) + (shrink.linux_rows(data["linux"]) if data["linux"] else [])


def plots(data):
    def column(what, title, subtitle, unit, data=data):
        bars = [(level, median(values), min(values), max(values)) for level, values in
                ((level, [each[what] for each in data[level]]) for level in shrink.LEVELS if level in data)]
        return svg.columns(title, subtitle, bars, unit, colours=("#8c959f", "#4aa3df", "#d55e00", "#e69f00"), width=440)
    return [(column("cost", "CPU the secondary takes for each reply", "by --shrink; less is better", "ms of CPU a reply") +
             column("rate", "What clients get", "by --shrink; more is better", "replies a second"),
             "The secondary's CPU time is that of its whole process, user and system. Without a pair clients get "
             f"{svg.number(median(each['rate'] for each in data[shrink.ALONE]))} replies a second."),
            (column("spin", "What the secondary's CPUs lose at the lock", "by --shrink; less is better", "ms a second, all CPUs") +
             column("locks", "How often they take it", "by --shrink", "a second"),
             "Double scheduling: the host takes the CPU from the one that holds the lock, and gives it to those that spin for it. "
             "Read in the guest's memory every 5 ms; time at the lock includes time without a host CPU.")] + ([
            (column("cost", "Linux: CPU the secondary takes", "four threads at one mutex; less is better", "µs a lock",
                    data["linux"]) +
             column("rate", "Linux: what the primary gets done", "more is better", "locks taken a second", data["linux"]), "")
            ] if data["linux"] else [])
