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
ROWS = ["failover_p50_ms", "failover_p99_ms", "failover_remus_p50_ms", "failover_remus_p99_ms", "failover_shrunk_p50_ms",
        "failover_shrunk_p99_ms"]


def replies(options, space, mode, shrunk=False):
    """The time of the kill, and when the client asked and was answered: CLOCK_MONOTONIC, in order. `shrunk`: of four CPUs three
    fight for a lock on the primary, and rest on the secondary until it takes over."""
    guest, follower = lab(options, "service=kv"), ()
    if shrunk:
        guest = [*lab(options, "service=kv,burn burn=seconds:60,spare:1"), "--cpus", "4"]
        follower = ("--shrink", "guest", "--shrink-to", "1")
    with Pair(options, space, mode, guest, follower=follower, shared=shrunk) as pair:
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


def rows(name, gaps, mode, target=None):
    first, silence, later = (sorted(each) for each in zip(*gaps))
    late, count = len(gaps) * 99 // 100, len(gaps)
    return [Row(f"failover_{name}p50_ms", median(first), "ms", f"{mode}, SIGKILL to the first reply of the survivor; the longest "
                f"silence {median(silence):.0f} ms; to the first reply to what was asked after it {median(later):.0f} ms", count),
            Row(f"failover_{name}p99_ms", first[late], "ms", f"silence {silence[late]:.0f} ms, asked later "
                f"{later[late]:.0f} ms", count, target)]


def run(options):
    rounds = 10 if options.quick else 50
    with network.Bridge() as space:
        colo = [gap(*replies(options, space, "colo")) for _ in range(rounds)]
        remus = [gap(*replies(options, space, "remus")) for _ in range(rounds // 2)]
        shrunk = [gap(*replies(options, space, "colo++", shrunk=True)) for _ in range(rounds // 2)]
    return (rows("", colo, "colo", "<= 200") + rows("remus_", remus, "remus", "<= 200")
            + rows("shrunk_", shrunk, "colo++ with one CPU of four", "<= 200"))
