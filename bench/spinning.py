"""What the CPUs of a burning lab guest lose at its lock, read from outside in the memory of a VMM."""

import os
import re
import struct
import threading
import time

from machine import GuestFailed

STEP = 0.005
RESULTS = re.compile(r"burn: results at (\d+) stride=(\d+) cpus=(\d+) khz=(\d+)")


def ram(process):
    """Where a VMM has its guest's RAM, and the file that holds the last checkpoint if that is another thing."""
    with open(f"/proc/{process.pid}/maps") as file:
        line = next((line for line in file if "memfd:guest-ram" in line), None)
    if line is None:
        raise GuestFailed("the guest's RAM is not mapped")
    file = None
    if line.split()[1].endswith("p"):
        folder = f"/proc/{process.pid}/fd"
        file = next(f"{folder}/{each}" for each in os.listdir(folder) if "memfd:guest-ram" in os.readlink(f"{folder}/{each}"))
    return int(line.split("-", 1)[0], 16), file


class Spinning(threading.Thread):
    """Watches until told to end. `found` is what the guest that serves has said (`RESULTS`): its twin has its counts in the same
    place."""

    def __init__(self, process, found):
        super().__init__(daemon=True)
        at, self.stride, self.cpus, self.khz = map(int, found.groups())
        start, checkpoint = ram(process)
        self.places = [(open(f"/proc/{process.pid}/mem", "rb", buffering=0), start + at)]
        if checkpoint:
            self.places.append((open(checkpoint, "rb", buffering=0), at))
        self.operations = self.ticks = 0
        self.seconds = 0.0
        self.ended = threading.Event()
        self.start()

    def look(self):
        """Operations and ticks of each CPU; of a secondary, since the checkpoint to which its guest was put back last."""
        counts = []
        for file, at in self.places:
            read = os.pread(file.fileno(), self.stride * self.cpus, at)
            counts.append([struct.unpack_from("<QQ", read, cpu * self.stride) for cpu in range(self.cpus)])
        if len(counts) == 1:
            return counts[0]
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
        for file, _ in self.places:
            file.close()
        return {"spin": self.ticks / self.khz / self.seconds, "locks": self.operations / self.seconds}
