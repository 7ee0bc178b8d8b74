"""SIGKILL of the primary under load: how long a client on an open connection is without replies."""

import subprocess
import sys
import threading
import time

import network
from machine import GuestFailed
from measure import Row, median
from pair import Pair, lab

NAME = "failover"
ROWS = ["failover_p50_ms", "failover_p99_ms", "failover_silence_p50_ms", "failover_silence_p99_ms",
        "failover_asked_later_p50_ms", "failover_asked_later_p99_ms", "failover_remus_p50_ms", "failover_remus_p99_ms"]


def replies(options, space, mode):
    """The time of the kill, and when the client asked and was answered: CLOCK_MONOTONIC, in order."""
    with Pair(options, space, mode, lab(options, "service=kv")) as pair:
        pair.wait_until_protected()
        pair.may_end = True
        killed = []

        def kill():
            time.sleep(0.5)
            killed.append(time.monotonic())
            pair.primary.process.kill()

        command = [sys.executable, "-B", f"{options.root}/bench/programs/ask.py", network.GUEST, "2"]
        threading.Timer(0, kill).start()
        try:
            asked, times = zip(*(map(float, line.split()) for line in pair.client(command, 20).splitlines()))
        except (subprocess.SubprocessError, ValueError) as failure:
            raise GuestFailed(f"{mode}: the client did not get every answer; {pair.secondary.tail()}") from failure
        return killed[0], asked, times


def gap(start, asked, times):
    """Milliseconds from the kill to the first answer after the silence that follows it, the longest silence, and from the
    kill to the first answer to what was asked after it: the others may wait at the survivor already."""
    # What was under way at the kill still arrives; the primary's process takes milliseconds to end.
    first = next(b for a, b in zip(times, times[1:]) if b > start and b - a > 0.01)
    silence = max(b - a for a, b in zip(times, times[1:]) if b > start)
    later = next(b for a, b in zip(asked, times) if a > start and b >= first)
    return (first - start) * 1000, silence * 1000, (later - start) * 1000


def run(options):
    rounds = 10 if options.quick else 50
    with network.Bridge() as space:
        colo = [gap(*replies(options, space, "colo")) for _ in range(rounds)]
        remus = [gap(*replies(options, space, "remus")) for _ in range(rounds // 2)]
    first, silence, later = (sorted(each) for each in zip(*colo))
    remus_first, remus_silence, remus_later = (sorted(each) for each in zip(*remus))
    late, remus_late = (count * 99 // 100 for count in (len(colo), len(remus)))
    return [Row("failover_p50_ms", median(first), "ms", "colo, SIGKILL to the first reply of the survivor", rounds),
            Row("failover_p99_ms", first[late], "ms", "", rounds, "<= 200"),
            Row("failover_silence_p50_ms", median(silence), "ms", "the client's longest time without a reply", rounds),
            Row("failover_silence_p99_ms", silence[late], "ms", "", rounds),
            Row("failover_asked_later_p50_ms", median(later), "ms", "SIGKILL to the first reply to what was asked after it",
                rounds),
            Row("failover_asked_later_p99_ms", later[late], "ms", "", rounds),
            Row("failover_remus_p50_ms", median(remus_first), "ms", f"silence {median(remus_silence):.0f} ms, asked later "
                f"{median(remus_later):.0f} ms", len(remus)),
            Row("failover_remus_p99_ms", remus_first[remus_late], "ms", f"silence {remus_silence[remus_late]:.0f} ms, asked "
                f"later {remus_later[remus_late]:.0f} ms", len(remus), "<= 200")]
