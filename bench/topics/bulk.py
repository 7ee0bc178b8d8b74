"""Bulk TCP out of the lab guest, by mode."""

import sys

import network
from measure import Row, median
from pair import Pair, lab

NAME = "bulk"
ROWS = ["bulk_vs_none_remus", "bulk_vs_none_colo"]
SIZES = {"none": 400, "remus": 20, "colo": 200}  # MB, so that each takes about a second


def run(options):
    rates = {mode: [] for mode in SIZES}
    with network.Bridge() as space:
        for _ in range(2 if options.quick else 5):
            for mode, megabytes in SIZES.items():
                with Pair(options, space, mode, lab(options, "service=bulk")) as pair:
                    pair.wait_until_protected()
                    command = [sys.executable, "-B", f"{options.root}/bench/programs/receive.py", network.GUEST]
                    pair.client([*command, "1000000"])
                    rates[mode].append(megabytes / float(pair.client([*command, str(megabytes * 1000000)])))
    none = rates["none"]
    return [Row(f"bulk_vs_none_{mode}", median(a / b for a, b in zip(rates[mode], none)), "×",
                f"{median(rates[mode]):.0f} MB/s; none {median(none):.0f} MB/s", len(none), target)
            for mode, target in (("remus", None), ("colo", ">= 0.5"))]
