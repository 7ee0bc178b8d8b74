"""The Linux guest: its files, and machines that run it. No topic of its own."""

import os
import shutil

import network
from machine import Machine, minivmm
from measure import Row, median

MEMORY_MIB = 128
SERVING = "minivmm: services started"


def files(options):
    """Kernel, initial RAM disk, command line and disk; None with the reason when they are not built."""
    out = f"{options.root}/guests/linux/out"
    names = [f"{out}/{name}" for name in ("vmlinux", "initramfs.cpio", "cmdline", "disk.img")]
    missing = [os.path.relpath(name, options.root) for name in names if not os.path.exists(name)]
    if missing:
        return None, f"no {', '.join(missing)}; run guests/linux/build"
    return names, None


def boot(options, names, disk, words="", extra=()):
    """The command that boots it with a copy of its disk."""
    kernel, initrd, line, image = names
    shutil.copyfile(image, disk)
    with open(line) as file:
        words = f"{file.read().strip()} {words}"
    return minivmm(options, kernel, words, MEMORY_MIB, ["--initrd", initrd, "--disk", disk, *extra])


def guest(options, names, disk, words=""):
    """The same for a pair, which says itself how much memory and which card there is."""
    words = iter(boot(options, names, disk, f"{NETWORK} {words}")[2:])
    return [word for word in words if word != "--memory" or not next(words)]


NETWORK = f"ip={network.GUEST}::{network.HOST}:255.255.255.0::eth0:off"


def first_process(options, folder):
    name = "linux_first_process_s"
    names, reason = files(options)
    if not names:
        return Row(name, None, "", reason)
    times = []
    for _ in range(1 if options.quick else 3):
        with Machine(boot(options, names, f"{folder}/root.img")) as machine:
            machine.wait_for("minivmm: init", 120)
            times.append(machine.seen - machine.started)
    return Row(name, median(times), "s", "128 MiB, 1 vCPU", len(times))
