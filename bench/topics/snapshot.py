"""Snapshot of the booted Linux guest: pause, size, and restore to redis-server's first reply."""

import os
import subprocess
import tempfile
import time

import network
from machine import Machine, inside, output
from measure import Row, Unavailable, median
from topics import linux

NAME = "snapshot"
ROWS = ["snapshot_pause_ms", "snapshot_mib", "restore_first_reply_ms"]


class Client:
    """Connections to redis-server, made before the snapshot: what a guest's clients have when it comes back. One each
    for the restores, as every restore takes the guest back to the same point of all of them."""

    def __init__(self, options, space, connections):
        command = [f"{options.programs}/redis_hold", "tap0", network.GUEST, "6379", str(connections)]
        self.process = subprocess.Popen(inside(space.name, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answer()
        # An address learnt by ARP is forgotten when the tap has no VMM, and asking again would be the guest's work.
        space.keep_neighbour(network.GUEST)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def answer(self):
        line = self.process.stdout.readline().decode().strip()
        if not line:
            raise Unavailable("redis_hold ended before its answer")
        return line

    def ask(self):
        """PING on the next connection, once there is a VMM on the tap."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def round_trip(self):
        """Milliseconds of one PING of the running guest."""
        asked = time.monotonic()
        self.ask()
        return (float(self.answer()) - asked) * 1000

    def first_reply(self, options, snapshot, disk, space):
        """Milliseconds from exec of `minivmm restore` to the answer on the next connection."""
        command = [options.minivmm, "restore", snapshot, "--disk", disk, *network.MINIVMM]
        self.ask()
        with Machine(command, namespace=space.name) as machine:
            return (float(self.answer()) - machine.started) * 1000


def paused_by_status(text):
    """Milliseconds from `minivmm snapshot`'s line "…, guest paused for 12.3 ms"."""
    return float(text.rsplit("paused for", 1)[1].split()[0])


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
            client = Client(options, space, 2 * rounds)
            round_trip = median(client.round_trip() for _ in range(rounds))
            for index in range(rounds):
                last = ["--stay-paused"] if index == rounds - 1 else []
                text = output([options.minivmm, "snapshot", "--control", control, *last, file], 60)
                pauses.append(paused_by_status(text))
        size = os.path.getsize(file) / (1 << 20)
        with client:
            replies = [client.first_reply(options, file, disk, space) for _ in range(rounds)]
    return [
        Row("snapshot_pause_ms", median(pauses), "ms", "kick, save and copy; 128 MiB of RAM", rounds),
        Row("snapshot_mib", size, "MiB", "zero pages left out", 1),
        Row("restore_first_reply_ms", median(replies), "ms",
            f"exec to a PONG of redis-server, which takes {round_trip:.0f} ms of the guest at any time", rounds, "<= 70"),
    ]
