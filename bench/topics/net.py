"""Lab guest on virtio-net: UDP echo over a tap, 64 and 1400 bytes, beside QEMU microvm."""

import re

import network
from machine import Machine, minivmm, output, qemu
from measure import Row, median, pairs, ratio

NAME = "net"
ROWS = ["net_64_vs_qemu", "net_1400_vs_qemu", "net_p50_us", "net_p99_us", "net_p50_vs_qemu", "net_p99_vs_qemu",
        "net_64_vs_floor"]
WINDOW = 32


def run(options):
    seconds = 1.0 if options.quick else 3.0
    words = f"service=echo {network.WORDS}"
    with network.Namespace() as space:

        def echo(size, window):
            text = output([f"{options.programs}/udp_echo", network.GUEST, str(size), str(window), str(seconds)],
                          seconds + 20, namespace=space.name)
            return [float(number) for number in re.findall(r"=([\d.]+)", text)]

        def measure(command):
            with Machine(command, namespace=space.name) as machine:
                machine.wait_for("lab: ready", 30)
                echo(64, 1)  # ARP, and pages touched
                return {"64": echo(64, WINDOW), "1400": echo(1400, WINDOW), "one": echo(64, 1)}

        def floor():
            """Echoes a second of a loop in C on the tap, with no guest at all."""
            space.set_neighbour(network.GUEST, "02:00:00:00:00:01")
            with Machine([f"{options.programs}/tap_echo", "tap0"], namespace=space.name) as loop:
                loop.wait_for("ready", 5)
                rate = echo(64, WINDOW)[0]
            space.forget_neighbour(network.GUEST)
            return rate

        ours, theirs, floors = pairs(
            options.rounds,
            lambda: measure(minivmm(options, options.lab, words, extra=network.MINIVMM)),
            lambda: measure(qemu(options.lab, words, extra=network.QEMU)),
            floor)

    def row(name, kind, index, unit, target=None, relative=True):
        a, b = ([result[kind][index] for result in side] for side in (ours, theirs))
        scale = f"{median(a):.0f}{unit}; QEMU {median(b):.0f}{unit}"
        if relative:
            return Row(name, ratio(a, b), "×", scale, len(a), target)
        return Row(name, median(a), "µs", f"QEMU {median(b):.0f} µs", len(a))

    return [
        row("net_64_vs_qemu", "64", 0, "/s", ">= 1.5"),
        row("net_1400_vs_qemu", "1400", 0, "/s", ">= 1.5"),
        row("net_p50_us", "one", 1, " µs", relative=False),
        row("net_p99_us", "one", 2, " µs", relative=False),
        row("net_p50_vs_qemu", "one", 1, " µs"),
        row("net_p99_vs_qemu", "one", 2, " µs"),
        Row("net_64_vs_floor", ratio([result["64"][0] for result in ours], floors), "×",
            f"a C loop on the tap without a guest {median(floors):.0f}/s", len(floors)),
    ]
