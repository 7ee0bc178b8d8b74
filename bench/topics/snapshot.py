"""Snapshot of the booted Linux guest: pause, size, and restore to the first reply."""

from measure import Unavailable
from topics import linux

NAME = "snapshot"
ROWS = ["snapshot_pause_ms", "snapshot_mib", "restore_first_reply_ms"]


def run(options):
    found, reason = linux.files(options)
    if not found:
        raise Unavailable(reason)
    raise Unavailable("not measured yet")
