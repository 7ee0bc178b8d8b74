"""Command line of bench/report: measures section by section, keeps report.json, draws report.html."""

import argparse
import atexit
import datetime
import json
import os
import signal
import subprocess
import sys
import time
import traceback

from machine import raise_priority
from measure import Options, Unavailable
from reporting import beside_qemu, host, load, page, services, shrink, store, takeover

SECTIONS = {module.NAME: module for module in (store, shrink, load, takeover, services, beside_qemu)}

EXAMPLES = """
examples:
  bench/report                            everything, about an hour: .build/report/report.html and report.json
  bench/report --quick                    fewer and shorter runs, a third of an hour
  bench/report --only store failover      two sections; the others stay as --out has them already
  bench/report --from .build/report/report.json --plot docs/images/report-main.svg
                                          draws again what was measured, and the first plot as a file of its own
  bench/report --host-note                what this machine is and what that does to the figures; measures nothing

MINIVMM=FILE measures another binary. A section that can't be measured here says so on the page. The exit status is 1 if
a section failed; a missed target is a result, and marked on the page.
"""


def say(text):
    print(text, file=sys.stderr, flush=True)


def parse():
    parser = argparse.ArgumentParser(
        prog="bench/report", description="Measures protected guests by mode, and draws what came out: one HTML page without "
        "other files, and the JSON behind it.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--out", metavar="DIR", help="where report.html and report.json go (.build/report)")
    parser.add_argument("--from", dest="source", metavar="FILE", help="draw this report.json again; measures nothing")
    parser.add_argument("--plot", metavar="FILE", help="the main plot (throughput by mode and read share) as an SVG file as well")
    parser.add_argument("--host-note", action="store_true", help="print what this machine is, and measure nothing")
    for hidden in ("--minivmm", "--programs", "--called"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.only or ():
        if name not in SECTIONS:
            parser.error(f"there is no section '{name}'; known are {', '.join(SECTIONS)}")
    called = arguments.called or "."
    arguments.out = os.path.join(called, arguments.out) if arguments.out else ".build/report"
    arguments.source = arguments.source and os.path.join(called, arguments.source)
    arguments.plot = arguments.plot and os.path.join(called, arguments.plot)
    if arguments.source and not os.path.exists(arguments.source):
        parser.error(f"there is no {arguments.source}")
    return arguments


def measure(name, options):
    """A section's entry in the report; what fails is told there."""
    start = time.monotonic()

    def tell(text):
        say(f"[{time.monotonic() - start:4.0f} s] {name}: {text}")

    entry = {"quick": options.quick, "measured": f"{datetime.datetime.now():%Y-%m-%d %H:%M}"}
    try:
        entry["data"] = SECTIONS[name].measure(options, tell)
        entry["figures"] = [{**row.json(), "target": row.target, "met": None if row.value is None or not row.target else row.met}
                            for row in SECTIONS[name].figures(entry["data"])]
    except Unavailable as reason:
        entry["unavailable"] = str(reason)
    except Exception as failure:  # the other sections can still be measured
        traceback.print_exc()
        entry["failed"] = f"{type(failure).__name__}: {str(failure)[-300:]}"
    entry["seconds"] = round(time.monotonic() - start)
    tell(entry.get("unavailable") or entry.get("failed") or "done")
    return entry


def commit(root):
    """What was measured; of a binary that somebody gave nothing is known."""
    if os.environ.get("MINIVMM"):
        return "unknown (MINIVMM was set)"
    try:
        return subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def keep(path, text):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def draw(report, arguments, only):
    path = f"{arguments.out}/report.html"
    keep(path, page.html(report, {name: SECTIONS[name] for name in only}))
    say(f"wrote {path}")
    if arguments.plot:
        data = report["sections"].get("store", {}).get("data")
        if not data:
            say("error: --plot needs the section store, which was not measured")
            return 2
        keep(arguments.plot, store.main_plot(data, alone=True))
        say(f"wrote {arguments.plot}")
    return 1 if any("failed" in report["sections"].get(name, {}) for name in only) else 0


def main():
    arguments = parse()
    if arguments.check:
        return 0
    if arguments.source:
        with open(arguments.source) as file:
            report = json.load(file)
        return draw(report, arguments, arguments.only or SECTIONS)
    if arguments.host_note:
        print(host.text(host.note(arguments.minivmm)))
        return 0
    # An interrupted run ends what it has started: SystemExit unwinds the `with` blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(raise_priority())  # who reads a clock must not wait for a CPU
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    options = Options(arguments.quick, arguments.minivmm, arguments.programs, root)
    path = f"{arguments.out}/report.json"
    report = {"sections": {}}
    if arguments.only and os.path.exists(path):
        with open(path) as file:
            report = json.load(file)
    report |= {"made": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "host": host.note(arguments.minivmm)}
    for name in arguments.only or SECTIONS:
        report["sections"][name] = {**measure(name, options), "commit": commit(root)}
        report["figures"] = {row["name"]: row["value"] for entry in report["sections"].values()
                             for row in entry.get("figures", ())}
        keep(path, json.dumps(report, indent=1) + "\n")  # an interrupted run leaves what it has
    say(f"wrote {path}")
    return draw(report, arguments, SECTIONS)


if __name__ == "__main__":
    sys.exit(main())
