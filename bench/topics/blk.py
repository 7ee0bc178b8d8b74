"""Lab guest on virtio-blk: random 4 KiB reads and sequential 128 KiB reads of a cached file, beside QEMU microvm."""

import os
import tempfile

from machine import Machine, minivmm, qemu
from measure import Row, median, pairs, ratio

NAME = "blk"
ROWS = ["blk_rr_qd1_vs_qemu", "blk_rr_qd32_vs_qemu", "blk_seq_vs_qemu", "blk_rr_qd1_vs_floor"]
DISK_MIB = 256
LOADS = {  # lab guest's disk= option, and the row that its IOPS go into
    "blk_rr_qd1_vs_qemu": "rand-read,bs=4096,qd=1",
    "blk_rr_qd32_vs_qemu": "rand-read,bs=4096,qd=32",
    "blk_seq_vs_qemu": "seq-read,bs=131072,qd=8",
}
# QEMU's ways to read a file; the fastest of each load is what we are compared with.
WAYS = {
    "threads": ("aio=threads", False),
    "io_uring": ("aio=io_uring", False),
    "threads+iothread": ("aio=threads", True),
    "io_uring+iothread": ("aio=io_uring", True),
}


def load(command):
    with Machine(command) as machine:
        found = machine.wait_for(r"disk: .* iops=(\d+) .* p50_us=(\d+) .* errors=(\d+)\s", 60)
        assert found[3] == "0", "the guest saw read errors"
        return int(found[1]), int(found[2])


def qemu_disk(disk, way):
    aio, thread = WAYS[way]
    device = "virtio-blk-device,drive=d0"
    extra = ["-drive", f"id=d0,file={disk},format=raw,if=none,cache=writeback,{aio}"]
    if thread:
        extra += ["-object", "iothread,id=io0"]
        device += ",iothread=io0"
    return [*extra, "-device", device]


def floor_microseconds(options):
    """An exit from CPL3 to user space and the interrupt that answers it, by a bare loop in C."""
    words = "service=exits,poweroff exits=count:1,mmio:20000"
    with Machine([f"{options.programs}/kvm_loop", options.lab, words, "--interrupt"]) as machine:
        return int(machine.wait_for(r"kind=mmio count=\d+ ns_each=(\d+)\s", 60)[1]) / 1000


def run(options):
    seconds = 1 if options.quick else 3
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        disk = f"{folder}/disk.img"
        with open(disk, "wb") as file:  # every block present, and in the page cache
            for _ in range(DISK_MIB):
                file.write(os.urandom(1 << 20))
        rows = []
        for row, option in LOADS.items():
            words = f"service=disk,poweroff disk={option},seconds={seconds}"

            def ours():
                return load(minivmm(options, options.lab, words, extra=["--disk", disk]))

            def theirs(way):
                return load(qemu(options.lab, words, extra=qemu_disk(disk, way)))

            tried = {way: max(theirs(way)[0] for _ in range(2)) for way in WAYS}
            best = max(tried, key=tried.get)
            a, b = pairs(options.rounds, ours, lambda: theirs(best))
            rows.append(Row(
                row, ratio([r[0] for r in a], [r[0] for r in b]), "×",
                f"{median(r[0] for r in a):.0f} IOPS; QEMU aio={best} {median(r[0] for r in b):.0f}",
                len(a), ">= 1.5"))
            if row == "blk_rr_qd1_vs_qemu":
                one = [1e6 / r[0] for r in a]
        floors = [floor_microseconds(options) for _ in range(options.rounds)]
        rows.append(Row(
            "blk_rr_qd1_vs_floor", median(one) / median(floors), "×",
            f"{median(one):.1f} µs a request; exit and interrupt alone {median(floors):.1f} µs", len(floors)))
        return rows
