"""Snapshot of the booted Linux guest: pause, size, and restore to redis-server's first reply."""

import os
import tempfile

import network
from machine import Machine, output
from measure import Row, Unavailable, median
from topics import linux

NAME = "snapshot"
ROWS = ["snapshot_pause_ms", "snapshot_mib", "restore_first_reply_ms"]


def paused_by_status(text):
    """Milliseconds from `minivmm snapshot`'s line "…, guest paused for 12.3 ms"."""
    return float(text.rsplit("paused for", 1)[1].split()[0])


def first_reply(options, snapshot, disk, space):
    """Milliseconds from exec of `minivmm restore` to the first answer of the guest's store."""
    command = [options.minivmm, "restore", snapshot, "--disk", disk, *network.MINIVMM]
    with Machine(command, namespace=space.name) as machine:
        replied = float(output([f"{options.programs}/tcp_ping", "tap0", network.GUEST, "6379"], 30, namespace=space.name))
        return (replied - machine.started) * 1000


def run(options):
    names, reason = linux.files(options)
    if not names:
        raise Unavailable(reason)
    rounds = 3 if options.quick else 7
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder, network.Namespace() as space:
        disk, control, file = f"{folder}/root.img", f"{folder}/control", f"{folder}/snapshot"
        command = linux.boot(options, names, disk, linux.NETWORK, [*network.MINIVMM, "--control", control])
        pauses = []
        with Machine(command, namespace=space.name) as machine:
            machine.wait_for(linux.SERVING, 240)
            output([f"{options.programs}/tcp_ping", "tap0", network.GUEST, "6379"], 30, namespace=space.name)
            for index in range(rounds):
                last = ["--stay-paused"] if index == rounds - 1 else []
                text = output([options.minivmm, "snapshot", "--control", control, *last, file], 60)
                pauses.append(paused_by_status(text))
        size = os.path.getsize(file) / (1 << 20)
        replies = [first_reply(options, file, disk, space) for _ in range(rounds)]
    return [
        Row("snapshot_pause_ms", median(pauses), "ms", "kick, save and copy; 128 MiB of RAM", rounds),
        Row("snapshot_mib", size, "MiB", "zero pages left out", 1),
        Row("restore_first_reply_ms", median(replies), "ms", "exec to redis-server's first PONG", rounds, "<= 70"),
    ]
