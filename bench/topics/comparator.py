"""The comparator alone, on streams that it is fed from memory, on one core."""

import os
import re
import subprocess

from machine import output
from measure import Row, Unavailable
from pair import HERE

NAME = "comparator"
ROWS = ["comparator_mpps", "comparator_gbps"]


def run(options):
    build = ["swift", "build", "-c", "release", "--static-swift-stdlib", "--product", "comparator-bench"]
    built = subprocess.run(build, cwd=options.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    program = f"{options.root}/.build/release/comparator-bench"
    if built.returncode or not os.path.exists(program):
        raise Unavailable(f"comparator-bench could not be built: {built.stderr[-200:]}")
    text = output([program], 120, HERE)
    rates = {name: (int(packets), float(gigabits))
             for name, packets, gigabits in re.findall(r"(\S+): (\d+) packets/s, ([\d.]+) Gb/s", text)}
    streams = {name: rate for name, rate in rates.items() if not name.startswith("map")}
    # Large segments count as one packet each: they are for the other row.
    slowest = min((name for name in streams if "14480" not in name), key=lambda name: streams[name][0])
    widest = max(streams, key=lambda name: streams[name][1])
    return [Row("comparator_mpps", streams[slowest][0] / 1e6, "M/s", f"packets of both sides; the slowest, {slowest}", 1, ">= 1"),
            Row("comparator_gbps", streams[widest][1], "Gb/s", f"of payload; {widest}", 1)]
