"""Beside QEMU's COLO, the same Linux guest, a checkpoint every 100 ms."""

import subprocess
import tempfile
import time

import network
from machine import GuestFailed, output
from measure import Row, Unavailable
from pair import HERE, Pair, cpu_seconds
from qemu_colo import QEMUPair, resident_mib
from topics import idle, linux
from topics.linux_pair import latency, warm_up
from topics.threads import threads

NAME = "colo_qemu"
ROWS = ["pause_vs_qemu_colo", "pause_p99_vs_qemu_colo", "secondary_cpu_vs_qemu_colo", "secondary_memory_vs_qemu_colo",
        "echo_ms_vs_own_unprotected", "qemu_echo_vs_none_100ms", "differing_vs_qemu_colo"]


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def ours(options, space, names, count, seconds):
    def client(command):
        return output(command, 120, HERE, space.name)

    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        arguments = (linux.guest(options, names, f"{folder}/root.img"), linux.MEMORY_MIB, "100ms", f"{folder}/root.img")
        with Pair(options, space, "run", *arguments) as pair:
            pair.wait_until_protected(linux.SERVING, 240)
            warm_up(client)
            alone = latency(client, ["-t", "ping_mbulk"], count)
        with Pair(options, space, "colo", *arguments) as pair:
            pair.wait_until_protected(linux.SERVING, 240)
            warm_up(client)
            before, cpu = pair.status(), cpu_seconds(pair.secondary.process)
            sides = (pair.primary.process, pair.secondary.process)
            used = [threads(each) for each in sides]
            time.sleep(seconds)
            after = pair.status()
            taken = sum(after["checkpoints"].values()) - sum(before["checkpoints"].values())
            cost = (cpu_seconds(pair.secondary.process) - cpu) / taken
            parts = [[(name, (now[name][0] - old.get(name, (0, 0))[0]) / 1e6 / taken) for name in now]
                     for now, old in zip(map(threads, sides), used)]
            extra = idle.extra_mib(pair.secondary.process, linux.MEMORY_MIB)
            echo = latency(client, ["-t", "ping_mbulk"], count)
            differing = latency(client, ["time"], count)
            pauses = pair.status()["pauseMicroseconds"]
    return {"alone": alone, "echo": echo, "differing": differing, "cost": cost, "extra": extra, "p50": pauses["p50"] / 1000,
            "p99": pauses["p99"] / 1000, "threads": parts}


def theirs(space, names, count, seconds):
    def client(command):
        return output(command, 120, HERE, space.name)

    with QEMUPair(space, names, linux.NETWORK, linux.MEMORY_MIB, 100, bare=True) as pair:
        pair.machines[0].wait_for(linux.SERVING, 240)
        warm_up(client)
        alone = latency(client, ["-t", "ping_mbulk"], count)
    with QEMUPair(space, names, linux.NETWORK, linux.MEMORY_MIB, 100) as pair:
        pair.machines[0].wait_for(linux.SERVING, 240)
        pair.protect()
        warm_up(client)
        before, cpu = len(pair.control.pauses()), cpu_seconds(pair.secondary)
        time.sleep(seconds)
        cost = (cpu_seconds(pair.secondary) - cpu) / (len(pair.control.pauses()) - before)
        extra = resident_mib(pair.secondary) - linux.MEMORY_MIB
        echo = latency(client, ["-t", "ping_mbulk"], count)
        differing = latency(client, ["time"], count)
        # The first ones copy the guest.
        pauses = [each * 1000 for each in pair.control.pauses()[3:]]
    return {"alone": alone, "echo": echo, "differing": differing, "cost": cost, "extra": extra,
            "p50": quantile(pauses, 0.5), "p99": quantile(pauses, 0.99)}


def measure(options):
    """What is measured of ours and of QEMU's, by name."""
    names, reason = linux.files(options)
    if not names:
        raise Unavailable(reason)
    count, seconds = (60, 5) if options.quick else (200, 15)
    with network.Bridge() as space:
        mine = ours(options, space, names, count, seconds)
        try:
            other = theirs(space, names, count, seconds)
        except (GuestFailed, RuntimeError, ValueError, OSError, ZeroDivisionError, subprocess.SubprocessError) as failure:
            raise Unavailable(f"QEMU's COLO: {str(failure)[-200:]}") from failure
    return mine, other


def run(options):
    return rows(*measure(options))


def rows(mine, other):
    def row(name, what, unit, target, scale=1.0, more=""):
        return Row(name, mine[what] / other[what], "×",
                   f"{mine[what] * scale:.2f} {unit}; QEMU {other[what] * scale:.2f} {unit}{more}", 1, target)

    def most(parts):
        return ", ".join(f"{name} {time:.2f}" for name, time in sorted(parts, key=lambda each: -each[1])[:4])

    primary, secondary = map(most, mine.get("threads", ([], [])))

    return [row("pause_vs_qemu_colo", "p50", "ms", "<= 0.5"),
            row("pause_p99_vs_qemu_colo", "p99", "ms", "<= 0.5"),
            row("secondary_cpu_vs_qemu_colo", "cost", "ms of CPU a checkpoint", "<= 0.25", 1000,
                f"; ours by thread: {secondary}; of the primary's: {primary}"),
            row("secondary_memory_vs_qemu_colo", "extra", "MiB beyond RAM", "<= 0.2"),
            Row("echo_ms_vs_own_unprotected", mine["echo"] / mine["alone"], "×",
                f"{mine['echo']:.1f} ms; unprotected {mine['alone']:.1f} ms", 1, "<= 1.3"),
            Row("qemu_echo_vs_none_100ms", other["echo"] / other["alone"], "×",
                f"QEMU {other['echo']:.1f} ms; unprotected {other['alone']:.1f} ms", 1),
            row("differing_vs_qemu_colo", "differing", "ms", "<= 0.7")]
