"""First touch of 1 GiB of guest RAM, and reads all over it, beside QEMU microvm: RAM as it comes by default in both."""

from machine import Machine, minivmm, qemu
from measure import Row, median, pairs, ratio

NAME = "memory"
ROWS = ["touch_1g_vs_qemu", "walk_1g_vs_qemu"]
RAM_MIB = 1280


def run(options):
    steps = 2_000_000 if options.quick else 10_000_000
    words = f"service=walk,poweroff walk=mib:1024,steps:{steps}"

    def rates(command):
        """1 GiB touched a second, and steps."""
        with Machine(command, cpus={0}) as machine:
            found = machine.wait_for(r"walk: mib=1024 touch_us=(\d+) step_ps=(\d+)\s", 120)
            return 1e6 / int(found[1]), 1e12 / int(found[2])

    # QEMU asks for transparent huge pages too where memory is anonymous, as its own is by default.
    ours, theirs = pairs(
        options.rounds,
        lambda: rates(minivmm(options, options.lab, words, memory=RAM_MIB)),
        lambda: rates(qemu(options.lab, words, memory=RAM_MIB)))
    (touch, walk), (their_touch, their_walk) = zip(*ours), zip(*theirs)
    return [
        Row("touch_1g_vs_qemu", ratio(touch, their_touch), "×", f"{1000 / median(touch):.0f} ms; QEMU {1000 / median(their_touch):.0f} ms",
            len(touch)),
        Row("walk_1g_vs_qemu", ratio(walk, their_walk), "×", f"{1e9 / median(walk):.1f} ns a read; QEMU {1e9 / median(their_walk):.1f} ns",
            len(walk), ">= 0.95"),
    ]
