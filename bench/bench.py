"""Command line of bench/run: which topics, how long, and the table."""

import argparse
import atexit
import json
import os
import signal
import sys
import traceback

from machine import raise_priority
from measure import Options, Unavailable
from topics import (
    blk, bulk, colo_qemu, comparator, exits, failover, idle, kv, lane, linux_pair, memory, net, pause, shrink, snapshot, start, store,
    threads)

TOPICS = {module.NAME: module for module in (exits, start, memory, blk, net, store, snapshot, comparator, pause, kv, bulk, failover, idle,
                                             shrink, threads, linux_pair, colo_qemu, lane)}

EXAMPLES = """
examples:
  bench/run                       everything, a table on the screen
  bench/run --quick exits blk     two topics, fewer and shorter runs
  bench/run --json net >net.jsonl one JSON object a line: name, value, unit, against, runs

Every ratio compares runs of the same minute, taken in turn (A B A B …), and is the median over the pairs. A row with a
target that it misses says MISS. MINIVMM=FILE measures another binary. Guests run on KVM in all VMMs.
"""


def parse():
    parser = argparse.ArgumentParser(
        prog="bench/run", description="Measures minivmm beside QEMU microvm and beside bare C loops on /dev/kvm.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="topics; all but lane when none is given")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: three minutes a topic at most")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    parser.add_argument("--list", action="store_true", help="the topics and their rows")
    for hidden in ("--minivmm", "--programs"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in TOPICS:
            parser.error(f"there is no topic '{name}'; known are {', '.join(TOPICS)}")
    return arguments


def show(row):
    value = "not available" if row.value is None else f"{row.value:.3g}" if row.value < 1000 else f"{row.value:.0f}"
    verdict = "" if row.value is None or row.target is None else "ok" if row.met else "MISS"
    tail = f"  {row.against}" if row.against else ""
    runs = "" if row.value is None else f"  n={row.runs}"
    print(f"{row.name:26} {value:>13} {row.unit:9} {row.target or '':8} {verdict:4}{runs}{tail}", flush=True)


def main():
    arguments = parse()
    if arguments.check:
        return 0
    if arguments.list:
        for module in TOPICS.values():
            print(f"{module.NAME:9} {module.__doc__.splitlines()[0]}\n{'':9} {', '.join(module.ROWS)}")
        return 0
    # An interrupted run ends what it has started: SystemExit unwinds the `with` blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(raise_priority())  # who reads a clock must not wait for a CPU
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    options = Options(arguments.quick, arguments.minivmm, arguments.programs, root)
    missed = failed = False
    for name in arguments.names or [name for name in TOPICS if name != lane.NAME]:  # that takes half an hour
        if not arguments.json:
            print(f"==> {name}: {TOPICS[name].__doc__.splitlines()[0]}", flush=True)
        try:
            rows = TOPICS[name].run(options)
        except Unavailable as reason:
            rows = [reason.row(row) for row in TOPICS[name].ROWS]
        except Exception as failure:  # the other topics can still be measured
            traceback.print_exc()
            failed = True
            rows = [Unavailable(f"failed: {type(failure).__name__}, see the errors").row(row) for row in TOPICS[name].ROWS]
        for row in rows:
            missed |= row.value is not None and not row.met
            print(json.dumps(row.json()), flush=True) if arguments.json else show(row)
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
