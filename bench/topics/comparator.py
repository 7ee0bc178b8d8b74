"""The comparator alone, on one core: on streams made up in memory, and on what a guest has sent."""

import os
import re
import subprocess
import sys
import tempfile

import network
from machine import inside, output
from measure import Row, Unavailable
from pair import HERE, Pair, lab
from topics import kv

NAME = "comparator"
ROWS = ["comparator_mpps", "comparator_gbps", "comparator_captured_store_mpps", "comparator_captured_bulk_gbps"]


def capture(options, path, service, load):
    """Has a guest serve `load`, and keeps what it sends."""
    with network.Bridge() as space, Pair(options, space, "run", lab(options, f"service={service}")) as pair:
        pair.wait_until_protected()
        command = [sys.executable, "-B", f"{options.root}/bench/programs/capture.py", "tap0", "3", "20000", path]
        with subprocess.Popen(inside(space.name, command), stdout=subprocess.PIPE, text=True) as watcher:
            watcher.stdout.readline()
            load(pair)
            watcher.wait(20)


def run(options):
    build = ["swift", "build", "-c", "release", "--static-swift-stdlib", "--product", "comparator-bench"]
    built = subprocess.run(build, cwd=options.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    program = f"{options.root}/.build/release/comparator-bench"
    if built.returncode or not os.path.exists(program):
        raise Unavailable(f"comparator-bench could not be built: {built.stderr[-200:]}")
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        store, bulk = f"{folder}/captured-store", f"{folder}/captured-bulk"
        capture(options, store, "kv", lambda pair: kv.load(options, pair, 1, 1))
        fetch = [sys.executable, "-B", f"{options.root}/bench/programs/receive.py", network.GUEST, "200000000"]
        capture(options, bulk, "bulk", lambda pair: pair.client(fetch))
        text = output([program, "1", store, bulk], 120, HERE)
    rates = {name: (int(packets), float(gigabits))
             for name, packets, gigabits in re.findall(r"(\S+): (\d+) packets/s, ([\d.]+) Gb/s", text)}
    streams = {name: rate for name, rate in rates.items() if not name.startswith(("map", "captured"))}
    # Large segments count as one packet each: they are for the other row.
    slowest = min((name for name in streams if "14480" not in name), key=lambda name: streams[name][0])
    widest = max(streams, key=lambda name: streams[name][1])
    return [Row("comparator_mpps", streams[slowest][0] / 1e6, "M/s", f"packets of both sides; the slowest, {slowest}", 1, ">= 1"),
            Row("comparator_gbps", streams[widest][1], "Gb/s", f"of payload; {widest}", 1),
            Row("comparator_captured_store_mpps", rates["captured-store"][0] / 1e6, "M/s", "replies of the lab guest's store", 1),
            Row("comparator_captured_bulk_gbps", rates["captured-bulk"][1], "Gb/s", "bulk out of the lab guest, TSO", 1)]
