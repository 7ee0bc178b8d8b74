"""The Linux guest: its files, its start. No topic of its own."""

import os

from machine import Machine
from measure import Row

MEMORY_MIB = 128


def files(options):
    """Kernel, initial RAM disk and command line; None with the reason when they are not built."""
    out = f"{options.root}/guests/linux/out"
    names = [f"{out}/vmlinux", f"{out}/initramfs.cpio", f"{out}/cmdline"]
    missing = [os.path.relpath(name, options.root) for name in names if not os.path.exists(name)]
    return (None, f"{', '.join(missing)} missing; guests/linux/build makes it") if missing else (names, None)


def first_process(options):
    name = "linux_first_process_s"
    found, reason = files(options)
    if not found:
        return Row(name, None, "", reason)
    return Row(name, None, "", "not measured yet")
