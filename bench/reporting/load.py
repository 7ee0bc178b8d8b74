"""What a pair does under load: checkpoints by cause, pauses, and how long output is held."""

import threading
import time

import network
from machine import GuestFailed
from measure import Row
from pair import Pair, lab
from reporting import modes, svg, svg_time
from topics import kv

NAME = "checkpoints"
TITLE = "Checkpoints, pauses and held output under load"
TEXT = """The store at saturation, 95 % reads, while <code>minivmm status --json</code> of the primary is asked four times a
second (so throughput here is a little lower than above). The load begins at 0."""
STEP = 0.25
CAUSES = ("first", "period", "mismatch", "queueFull", "silence", "demand")
CAUSE_COLOURS = dict(zip(CAUSES, ("#8c959f", "#4aa3df", "#d55e00", "#cc79a7", "#e69f00", "#009e73")))


class Sampler(threading.Thread):
    """Asks a primary for its status until it is told to stop; (seconds since the start, checkpoints by cause)."""

    def __init__(self, pair):
        super().__init__(daemon=True)
        self.pair, self.samples, self.ended, self.start_time = pair, [], threading.Event(), time.monotonic()
        self.start()

    def run(self):
        while not self.ended.is_set():
            try:
                status = self.pair.status()
            except GuestFailed:
                break  # who measures finds out why
            self.samples.append({"at": time.monotonic() - self.start_time, "checkpoints": status["checkpoints"]})
            self.ended.wait(STEP)

    def end(self):
        self.ended.set()
        self.join(15)
        return self.samples


def measure(options, tell):
    seconds = 4 if options.quick else 15
    results = {}
    with network.Bridge() as space:
        for mode in modes.MODES[1:]:
            tell(mode)
            with Pair(options, space, mode, lab(options, "service=kv")) as pair:
                pair.wait_until_protected()
                sampler = Sampler(pair)
                try:
                    load = kv.load(options, pair, 1, seconds)
                finally:
                    samples = sampler.end()
                results[mode] = {"samples": samples, "load": load, "status": pair.status()}
    return results


def figures(data):
    rows = []
    for mode, result in data.items():
        status, name = result["status"], modes.name(mode)
        taken = ", ".join(f"{cause} {count}" for cause, count in status["checkpoints"].items() if count)
        samples, pauses, held = result["samples"], status["pauseMicroseconds"], status["held"]
        times = status["heldMicroseconds"]
        count = sum(samples[-1]["checkpoints"].values()) - sum(samples[0]["checkpoints"].values())
        rows.append(Row(f"kv95_checkpoints_per_second_{name}", count / (samples[-1]["at"] - samples[0]["at"]), "/s", taken, 1))
        rows.append(Row(f"kv95_pause_p99_ms_{name}", pauses["p99"] / 1000, "ms", f"p50 {pauses['p50'] / 1000:.2f} ms, longest "
                        f"{pauses['max'] / 1000:.2f} ms, {pauses['count']} pauses", 1))
        rows.append(Row(f"kv95_held_p50_ms_{name}", times["p50"] / 1000, "ms", f"p99 {times['p99'] / 1000:.1f}, longest "
                        f"{times['max'] / 1000:.1f} ms; frames at once {held['atOnce']}, early {held['early']}, "
                        f"equal {held['equal']}, with a checkpoint {held['checkpointed']}; wrong early {held['contradicted']}", 1))
    return rows


def over_time(mode, result):
    """(start, end, checkpoints a second by cause) between samples, a few samples together."""
    bins, samples = [], result["samples"][::2]
    for before, after in zip(samples, samples[1:]):
        width = after["at"] - before["at"]
        rates = {cause: (after["checkpoints"].get(cause, 0) - before["checkpoints"].get(cause, 0)) / width for cause in CAUSES}
        bins.append((before["at"], after["at"], rates))
    return mode, bins


WAYS = (("atOnce", "at once, before there was a secondary", "#8c959f"), ("early", "early", "#d55e00"),
        ("equal", "the secondary said the same", "#4aa3df"), ("checkpointed", "with a checkpoint", "#e69f00"))


NOT_EARLY = (("unmarked", "unmarked", "#8c959f"), ("changed", "changed since the checkpoint", "#d55e00"),
             ("unknown", "not known yet", "#4aa3df"), ("refused", "too many", "#e69f00"), ("unsought", "not looked for", "#9467bd"))
AWAITED = (("input", "input to arrive", "#4aa3df"), ("earlier", "earlier output", "#8c959f"),
           ("checkpoint", "a checkpoint on its way", "#e69f00"), ("distrusted", "one after a difference", "#d55e00"))


def plots(data):
    pauses, lags, held, stood, ways, reasons, waits = [], [], [], [], [], [], []
    for mode, result in data.items():
        status = result["status"]
        for times, marks in ((status["pauseMicroseconds"], pauses), (status["receiveMicroseconds"], lags)):
            marks.append((mode, [times[what] / 1000 for what in ("p50", "p99", "max")], ""))
        out = status["held"]
        held.append((mode, [each / 1000 for each in status["heldSpreadMicroseconds"]]))
        stood.append((mode, [each / 1000 for each in status["pauseSpreadMicroseconds"]]))
        if "notEarly" in status:
            reasons.append((mode, [(colour, status["notEarly"].get(key, 0), label) for key, label, colour in NOT_EARLY]))
            waits.append((mode, [(colour, status["earlyAwaited"][key], label) for key, label, colour in AWAITED]))
        ways.append((mode, [(colour, out[key], label) for key, label, colour in WAYS]))
    early = [(svg_time.shares("Why output did not leave early", "share of those frames since the pair began", reasons) +
              svg_time.shares("What early output waited for first", "share of those frames since the pair began", waits),
              "<i>unmarked</i>: the guest did not say what it is made of, because it confirms a write. Flows in which what left "
              f"early turned out wrong: {sum(each['status']['held']['contradicted'] for each in data.values())}.")]
    return [
        (svg_time.rates("Checkpoints by cause", "a second, over time, while clients load the store", [
            over_time(mode, result) for mode, result in data.items()], CAUSE_COLOURS, "checkpoints a second"),
         "<i>period</i>: the epoch's time was over; <i>mismatch</i>: the two guests said different things; <i>silence</i>: one "
         "of them said nothing; <i>demand</i>: somebody asked for it. The client first sets its thousand keys, which takes "
         "<i>remus</i> longer than the others: one batch a checkpoint."),
        (svg.quantiles("Pauses", "how long a checkpoint stops the guest, and until the secondary has all of it; log scale",
                       [("guest stands still", pauses), ("secondary has received it", lags)], "milliseconds",
                       ("p50", "p99", "longest"), width=620) +
         svg_time.spread("Pauses, all of them", "share of pauses that were no longer; log scale", stood, "ms", width=440),
         "What <code>status</code> keeps of each: median, 99th percentile, longest, since the pair began."),
        (svg_time.spread("Held output", "share of frames that were held no longer; log scale", held, "ms", width=440) +
         svg_time.shares("Why output left", "share of all frames since the pair began", ways, width=520),
         "Frames that left <i>early</i> waited for the secondary to have the request, not for its reply. The "
         "longest ones are held when the pair is made."),
    ] + (early if reasons else [])
