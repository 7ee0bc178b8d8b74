"""How long a checkpoint stops the primary's guest, beside the system calls and the copying that it takes."""

import json
import time

import network
from machine import output
from measure import Row, Unavailable, median
from pair import HERE, Pair, lab

NAME = "pause"
SIZES = (16, 256, 4096)
ROWS = [f"pause_vs_floor_{size}" for size in SIZES] + [f"pause_p99_ms_{size}" for size in SIZES]


def run(options):
    seconds = 4 if options.quick else 10
    rows = []
    with network.Bridge() as space:
        for size in SIZES:
            ours, floors, p99s, longest, dirty = [], [], [], [], 0
            for _ in range(1 if options.quick else 3):
                words = f"service=dirty dirty=pages:{size},rate:{size * 20},seconds:600"
                with Pair(options, space, "remus", lab(options, words)) as pair:
                    pair.wait_until_protected("lab: ready")
                    time.sleep(seconds)
                    status = pair.status()
                floor = json.loads(output([f"{options.programs}/pause_floor", str(status["dirtyPages"]["p50"]),
                                           str(seconds * 10)], 60, HERE))
                if floor["pages"] != status["dirtyPages"]["p50"]:
                    raise Unavailable(f"the floor's guest dirtied {floor['pages']} pages, not {status['dirtyPages']['p50']}")
                ours.append(status["pauseMicroseconds"]["p50"])
                p99s.append(status["pauseMicroseconds"]["p99"] / 1000)
                longest.append(status["pauseMicroseconds"]["max"] / 1000)
                floors.append(floor["p50"])
                dirty = status["dirtyPages"]["p50"]
            ratio = median(a / b for a, b in zip(ours, floors))
            rows.append(Row(f"pause_vs_floor_{size}", ratio, "×", f"p50 {median(ours):.0f} µs, floor {median(floors):.0f} µs; "
                            f"{dirty} pages dirty", len(ours), "<= 1.5"))
            rows.append(Row(f"pause_p99_ms_{size}", median(p99s), "ms", f"longest {max(longest):.1f} ms", len(ours)))
    return rows
