"""What a pair costs whose guest does nothing, and the memory of the secondary beyond its guest's."""

import re
import time

import network
from measure import Row
from pair import Pair, cpu_seconds, lab, settle

NAME = "idle"
ROWS = ["idle_cpu_primary", "idle_cpu_secondary", "idle_bytes_per_s", "idle_checkpoints_per_s", "secondary_extra_mib"]


def extra_mib(process, ram):
    """Anonymous memory and files, and what of the shared memory is more than the guest's RAM. A secondary maps its guest's
    memory twice: its pages are shared with nobody else, so that their proportional size counts each once."""
    with open(f"/proc/{process.pid}/status") as file:
        rss = {name: int(size) / 1024 for name, size in re.findall(r"Rss(\w+):\s+(\d+) kB", file.read())}
    with open(f"/proc/{process.pid}/smaps_rollup") as file:
        shared = int(re.search(r"Pss_Shmem:\s+(\d+) kB", file.read())[1]) / 1024
    return rss["Anon"] + rss["File"] + max(0, shared - ram)


def run(options):
    seconds = 4 if options.quick else 10
    with network.Bridge() as space, Pair(options, space, "colo", lab(options, "service=kv")) as pair:
        pair.wait_until_protected()
        settle(2)
        sides = (pair.primary.process, pair.secondary.process)
        before, cpus, start = pair.status(), [cpu_seconds(side) for side in sides], time.monotonic()
        time.sleep(seconds)
        after, took = pair.status(), time.monotonic() - start
        shares = [100 * (cpu_seconds(side) - cpu) / took for side, cpu in zip(sides, cpus)]
        extra = extra_mib(sides[1], 64)
    count = sum(after["checkpoints"].values()) - sum(before["checkpoints"].values())
    return [Row("idle_cpu_primary", shares[0], "%", "of a core; colo, 100 ms, 64 MiB lab guest", 1),
            Row("idle_cpu_secondary", shares[1], "%", "of a core", 1),
            Row("idle_bytes_per_s", (after["bytesSent"] - before["bytesSent"]) / took, "B/s", "primary to secondary", 1),
            Row("idle_checkpoints_per_s", count / took, "1/s", "", 1),
            Row("secondary_extra_mib", extra, "MiB", "beyond 64 MiB of guest RAM", 1)]
