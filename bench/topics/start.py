"""Time from process start to the guest's first byte, memory beyond guest RAM; beside QEMU microvm."""

import tempfile
import time

from machine import Machine, minivmm, qemu
from measure import Row, median, pairs, ratio
from topics import linux

NAME = "start"
ROWS = ["start_ms", "start_vs_qemu", "rss_mib", "rss_vs_qemu", "linux_first_process_s"]
RAM_MIB = 128


def resident_beyond_ram(pid):
    """MiB resident in all mappings but guest RAM: QEMU's is the one of RAM's size, ours are those that a core dump leaves out."""
    total, size, resident = 0, 0, 0
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            name, *words = line.split()
            if name == "Size:":
                size = int(words[0])
            elif name == "Rss:":
                resident = int(words[0])
            elif name == "VmFlags:" and size < RAM_MIB << 10 and not ("dd" in words and size >= 1 << 10):
                total += resident
    return total / 1024


def first_byte(command):
    with Machine(command) as machine:
        machine.wait_for("H", 20)
        milliseconds = (machine.seen - machine.started) * 1000
        time.sleep(0.05)  # the guest rests from here on; threads that started late get there too
        return milliseconds, resident_beyond_ram(machine.process.pid)


def run(options):
    kernel = f"{options.programs}/hello.elf"
    ours, theirs, bare = pairs(
        options.rounds * 2,
        lambda: first_byte(minivmm(options, kernel, memory=RAM_MIB)),
        lambda: first_byte(qemu(kernel, memory=RAM_MIB)),
        # What KVM itself takes: a C program that makes the same machine and nothing else.
        lambda: first_byte([f"{options.programs}/kvm_loop", kernel, ""]))
    times, resident = zip(*ours)
    their_times, their_resident = zip(*theirs)
    note = "QEMU microvm, KVM"
    rows = [
        Row("start_ms", median(times), "ms", f"{note}: {median(their_times):.0f} ms; bare C loop {median(t for t, _ in bare):.0f} ms",
            len(times), "<= 15"),
        Row("start_vs_qemu", ratio(times, their_times), "×", note, len(times), "<= 0.25"),
        Row("rss_mib", median(resident), "MiB", f"{note}: {median(their_resident):.1f} MiB", len(times), "<= 6"),
        Row("rss_vs_qemu", ratio(resident, their_resident), "×", note, len(times), "<= 0.15"),
    ]
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        return rows + [linux.first_process(options, folder)]
