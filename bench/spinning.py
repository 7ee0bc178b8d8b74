"""What the CPUs of a burning lab guest lose at its lock, read from outside in the memory of a secondary."""

import os
import re
import struct
import threading
import time

from machine import GuestFailed

STEP = 0.005
RESULTS = re.compile(r"burn: results at (\d+) stride=(\d+) cpus=(\d+) khz=(\d+)")


def ram(process):
    """Where a secondary has its guest's view of RAM, and the last checkpoint behind it."""
    with open(f"/proc/{process.pid}/maps") as file:
        lines = [line.split() for line in file if "memfd:guest-ram" in line]
    starts = {words[1][3]: int(words[0].split("-")[0], 16) for words in reversed(lines)}
    if "p" not in starts or "s" not in starts:
        raise GuestFailed("the process is no secondary that has its guest's RAM mapped")
    return starts["p"], starts["s"]


class Spinning(threading.Thread):
    """Watches until told to end. `found` is what the guest that serves has said (`RESULTS`): its twin has its counts in the same
    place."""

    def __init__(self, process, found):
        super().__init__(daemon=True)
        at, self.stride, self.cpus, self.khz = map(int, found.groups())
        self.memory = open(f"/proc/{process.pid}/mem", "rb", buffering=0)
        self.places = [start + at for start in ram(process)]
        self.operations = self.ticks = 0
        self.seconds = 0.0
        self.ended = threading.Event()
        self.start()

    def look(self):
        """Operations and ticks of each CPU since the checkpoint to which its guest was put back last."""
        counts = []
        for at in self.places:
            read = os.pread(self.memory.fileno(), self.stride * self.cpus, at)
            counts.append([struct.unpack_from("<QQ", read, cpu * self.stride) for cpu in range(self.cpus)])
        return [tuple(max(0, mine - base) for mine, base in zip(*each)) for each in zip(*counts)]

    def run(self):
        before, began = self.look(), time.monotonic()
        while not self.ended.wait(STEP):
            now = self.look()
            for cpu in range(self.cpus):
                # Less than before: it was put back meanwhile.
                operations, ticks = (new - old if new >= old else new for new, old in zip(now[cpu], before[cpu]))
                self.operations += operations
                self.ticks += ticks
            before = now
        self.seconds = time.monotonic() - began

    def end(self):
        """Milliseconds that all CPUs together lose at the lock in a second, and how often they take it."""
        self.ended.set()
        self.join(5)
        self.memory.close()
        return {"spin": self.ticks / self.khz / self.seconds, "locks": self.operations / self.seconds}
