"""SIGKILL of the primary under load: how long a client on an open connection is without replies."""

import re
import sys
import threading
import time

import network
from measure import Row, median
from pair import Pair, lab

NAME = "failover"
ROWS = ["failover_p50_ms", "failover_p99_ms", "failover_silence_p50_ms", "failover_silence_p99_ms", "failover_remus_p50_ms"]


def gap(options, space, mode):
    """Milliseconds from the kill to the first answer after the silence that follows it, and the longest silence."""
    with Pair(options, space, mode, lab(options, "service=kv")) as pair:
        pair.wait_until_protected()
        killed = []

        def kill():
            time.sleep(0.5)
            killed.append(time.monotonic())
            pair.primary.process.kill()

        command = [sys.executable, "-B", f"{options.root}/bench/programs/ask.py", network.GUEST, "2"]
        threading.Timer(0, kill).start()
        times = [float(each) for each in re.findall(r"\d+\.\d+", pair.client(command, 20))]
        start = killed[0]
        # What was under way at the kill still arrives; the primary's process takes milliseconds to end.
        first = next(b for a, b in zip(times, times[1:]) if b > start and b - a > 0.01)
        return (first - start) * 1000, max(b - a for a, b in zip(times, times[1:]) if b > start) * 1000


def run(options):
    rounds = 10 if options.quick else 50
    with network.Bridge() as space:
        colo = [gap(options, space, "colo") for _ in range(rounds)]
        remus = [gap(options, space, "remus") for _ in range(rounds // 2)]
    first, silence = (sorted(each) for each in zip(*colo))
    late = min(rounds - 1, rounds * 99 // 100)
    return [Row("failover_p50_ms", median(first), "ms", "colo, SIGKILL to the first reply of the survivor", rounds),
            Row("failover_p99_ms", first[late], "ms", "", rounds, "<= 200"),
            Row("failover_silence_p50_ms", median(silence), "ms", "the client's longest time without a reply", rounds),
            Row("failover_silence_p99_ms", silence[late], "ms", "", rounds),
            Row("failover_remus_p50_ms", median(each[0] for each in remus), "ms",
                f"longest {max(each[0] for each in remus):.0f} ms, silence {max(each[1] for each in remus):.0f} ms", len(remus))]
