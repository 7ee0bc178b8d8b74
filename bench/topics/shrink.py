"""A secondary that takes less of its host: vCPUs at one lock, on both sides, both sides on both cores."""

import json
import re
import tempfile
import time

import network
from machine import GuestFailed
from measure import Row, median
from pair import Pair, cpu_seconds, lab, settle
from spinning import RESULTS, Spinning
from topics import linux

NAME = "shrink"
LINUX_LEVELS = ("off", "host", "guest")  # with one CPU of four
LEVELS = (*LINUX_LEVELS, "auto")  # "auto": the guest is asked, for as many CPUs as keep output from waiting
ALONE = "alone"  # the guest without a pair
ROWS = ["secondary_cpu_shrink_vs_off", "secondary_cpu_host_vs_off", "shrink_throughput_vs_off", "host_throughput_vs_off",
        "secondary_cpu_auto_vs_off", "auto_throughput_vs_off", "shrink_throughput_vs_alone", "off_throughput_vs_alone", "secondary_lock_loss_shrink_vs_off",
        "secondary_lock_loss_host_vs_off",
        "linux_secondary_cpu_shrink_vs_off", "linux_secondary_cpu_host_vs_off", "linux_locks_shrink_vs_off",
        "linux_locks_host_vs_off"]


def follower(level):
    """Options of the secondary."""
    return ("--shrink", "guest", "--shrink-to", "auto") if level == "auto" else ("--shrink", level, "--shrink-to", "1")


def measure(options, space, level, seconds):
    """Three vCPUs of the lab guest on a spinlock beside one with the store: CPU milliseconds of the secondary for each reply that
    clients got, replies a second, and what its CPUs lose at the lock."""
    words = f"service=kv,burn burn=seconds:{seconds + 60},inside:50,outside:500,spare:1"
    guest = [*lab(options, words), "--cpus", "4"]
    with Pair(options, space, "run" if level == ALONE else "colo++", guest, follower=follower(level), shared=True) as pair:
        pair.wait_until_protected()
        settle(1)
        secondary = (pair.secondary or pair.primary).process
        spinning = Spinning(secondary, pair.primary.wait_for(RESULTS, 10))
        before = cpu_seconds(secondary)
        load = json.loads(pair.client([f"{options.programs}/kv_load", network.GUEST, "6379", "8", "1", "95", str(seconds), "0"],
                                      seconds * 3 + 20))
        used = cpu_seconds(secondary) - before
        return {"cost": 1000 * used / load["replies"], "rate": load["per_second"], "p99": load["p99"] / 1000, **spinning.end()}


def measure_linux(options, space, names, level, seconds):
    """Four threads of a Linux guest with four vCPUs at one mutex: how often the primary's take it in a second, and how much of
    the host's CPUs the secondary takes."""
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        disk = f"{folder}/root.img"
        guest = [*linux.guest(options, names, disk, "minivmm.services=locks"), "--cpus", "4"]
        with Pair(options, space, "colo++", guest, linux.MEMORY_MIB, disk=disk, follower=follower(level), shared=True) as pair:
            pair.wait_until_protected(linux.SERVING, 240)
            settle(3)
            pair.primary.tail()  # reads what it has said
            before, said, begin = cpu_seconds(pair.secondary.process), len(pair.primary.text), time.monotonic()
            lines, taken = [], 0
            # A starved guest counts seldom.
            while taken < seconds or not lines and taken < 60:
                time.sleep(seconds / 8)
                pair.primary.tail()
                taken = time.monotonic() - begin
                lines = [int(each) for each in re.findall(r"locks: (\d+)\r?\n", pair.primary.text[said:])]
            used = cpu_seconds(pair.secondary.process) - before
    if not lines:
        raise GuestFailed(f"--shrink {level}: the Linux guest took no lock within {taken:.0f} s")
    rate, seconds = sum(lines) / len(lines), taken
    return {"cpu": used / seconds, "rate": rate, "cost": 1e6 * used / seconds / rate}


def run(options):
    results = {level: [] for level in (ALONE, *LEVELS)}
    in_linux = {level: [] for level in LINUX_LEVELS}
    names, reason = linux.files(options)
    with network.Bridge() as space:
        for _ in range(1 if options.quick else 3):
            results[ALONE].append(measure(options, space, ALONE, 4 if options.quick else 8))
            for level in LEVELS:
                results[level].append(measure(options, space, level, 4 if options.quick else 8))
                if names and level in LINUX_LEVELS:
                    in_linux[level].append(measure_linux(options, space, names, level, 8 if options.quick else 20))
    return rows(results) + (linux_rows(in_linux) if names else [Row(name, None, "", reason) for name in ROWS if name.startswith("linux_")])


def linux_rows(results):
    count = len(results["off"])

    def row(name, level, what, tell):
        mine, off = (median(each[what] for each in results[which]) for which in (level, "off"))
        return Row(name, median(a[what] / b[what] for a, b in zip(results[level], results["off"])), "×",
                   f"{level}: {tell(mine)}; off {tell(off)}", count)

    return [row(f"linux_secondary_cpu_{name}_vs_off", level, "cost", lambda value: f"{value:.3g} µs of the secondary's CPU a lock")
            for name, level in (("shrink", "guest"), ("host", "host"))] + [
            row(f"linux_locks_{name}_vs_off", level, "rate", lambda value: f"{value:.0f} locks/s of the primary")
            for name, level in (("shrink", "guest"), ("host", "host"))]


def rows(results):
    count = len(results["off"])

    def row(name, level, what, unit, target=None, base="off"):
        mine, other = results[level], results[base]
        return Row(name, median(a[what] / b[what] for a, b in zip(mine, other)), "×",
                   f"{level}: {median(each[what] for each in mine):.3g} {unit}; {base} "
                   f"{median(each[what] for each in other):.3g} {unit}", count, target)

    cpu, rate = "ms of the secondary's CPU a reply", "replies/s"
    loss = "ms a second that its CPUs wait for the lock"
    return [row("secondary_cpu_shrink_vs_off", "guest", "cost", cpu, "<= 0.5"),
            row("secondary_cpu_host_vs_off", "host", "cost", cpu),
            row("shrink_throughput_vs_off", "guest", "rate", rate, ">= 1"),
            row("host_throughput_vs_off", "host", "rate", rate),
            row("secondary_cpu_auto_vs_off", "auto", "cost", cpu),
            row("auto_throughput_vs_off", "auto", "rate", rate),
            row("shrink_throughput_vs_alone", "guest", "rate", rate, base=ALONE),
            row("off_throughput_vs_alone", "off", "rate", rate, base=ALONE),
            row("secondary_lock_loss_shrink_vs_off", "guest", "spin", loss),
            row("secondary_lock_loss_host_vs_off", "host", "spin", loss)]
