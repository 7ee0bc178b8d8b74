"""Redis and nginx in the protected Linux guest, by mode, and the latency of one reply."""

import contextlib
import json
import re
import tempfile

import network
from machine import GuestFailed
from measure import Row, Unavailable, median
from pair import Pair, settle
from topics import linux

NAME = "linux_pair"
# Mode, period, and what is measured: latency is compared with the guest without a pair, the rest with mode none.
RUNS = {
    "run": ("run", "100ms", {"echo"}),
    "none": ("none", "100ms", {"redis", "bulk"}),
    "remus": ("remus", "100ms", {"redis", "bulk"}),
    "100ms": ("colo", "100ms", {"echo", "redis", "bulk"}),
    "2s": ("colo", "2s", {"echo"}),
}
ROWS = ["redis_vs_none_remus", "redis_vs_none_colo", "bulk_linux_vs_none_remus", "bulk_linux_vs_none_colo",
        "echo_vs_none_100ms", "echo_vs_none_2s", "echo_slower_of_two", "linux_pause_p50_ms", "linux_pause_p99_ms"]
REDIS = ["redis-benchmark", "-h", network.GUEST, "--csv"]


def warm_up(client):
    """Connections and replies that nobody measures. The guest has just booted, and a pair gives it longer to come to rest:
    without this the unprotected one would look slow."""
    client([*REDIS, "-c", "8", "-n", "100", "-t", "get"])
    settle(2)


def latency(client, command, count):
    """Median milliseconds of one request of redis on one connection."""
    text = client([*REDIS, "-c", "1", "-n", str(count), *command])
    # The columns are name, rate, average, least, p50, …
    return float(re.findall(r'"([\d.]+)"', text.splitlines()[-1])[3])


def pings(options, client, count):
    """Milliseconds of so many PINGs, ascending."""
    text = client(["python3", "-B", f"{options.root}/bench/programs/ping.py", network.GUEST, str(count)])
    return sorted(map(float, text.split()))


def redis(client, requests):
    """Replies a second on 8 connections."""
    return float(re.search(r'"GET","([\d.]+)"', client([*REDIS, "-c", "8", "-n", str(requests), "-t", "get"]))[1])


def bulk(options, client, folder):
    """Bytes a second of a file of 16 MiB from nginx, or of as much of it as comes within the time; line n of it is the number n
    in seven digits."""
    fetch = (f"curl -sf --max-time {10 if options.quick else 20} -o {folder}/file -w '%{{speed_download}}' "
             f"http://{network.GUEST}/16MiB.txt || [ $? = 28 ]")
    speed = client(["sh", "-c", fetch])
    with open(f"{folder}/file", "rb") as file:
        for number, line in enumerate(file):
            if not (b"%07d\n" % number).startswith(line):
                raise GuestFailed(f"line {number} of 16MiB.txt came as {line!r}")
    return float(speed)


@contextlib.contextmanager
def serving(options, space, names, mode, period="100ms"):
    """A protected Linux guest whose servers have warmed up: the pair, what runs a client, and a folder."""
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        disk = f"{folder}/root.img"
        with Pair(options, space, mode, linux.guest(options, names, disk), linux.MEMORY_MIB, period, disk) as pair:
            pair.wait_until_protected(linux.SERVING, 240)

            def client(command):
                return pair.client(command, 120)

            warm_up(client)
            yield pair, client, folder


def measure(options, space, names, run):
    mode, period, wanted = RUNS[run]
    requests = 200 if options.quick else 600
    with serving(options, space, names, mode, period) as (pair, client, folder):
        result = {}
        if "echo" in wanted:
            times = pings(options, client, requests // 2)
            result["echo"] = median(times)
            # Half of the time the slower of two that are as slow as this one is faster than that: .5 ** .5 of each.
            result["slower"] = times[round(0.7071 * (len(times) - 1))]
        if "redis" in wanted:
            result["redis"] = redis(client, requests)
        if "bulk" in wanted:
            result["bulk"] = bulk(options, client, folder)
        if mode not in ("run", "none"):
            result["status"] = pair.status()
    return result


def run(options):
    names, reason = linux.files(options)
    if not names:
        raise Unavailable(reason)
    rounds = 1 if options.quick else 3
    results = {each: [] for each in RUNS}
    with network.Bridge() as space:
        for _ in range(rounds):
            for each in RUNS:
                results[each].append(measure(options, space, names, each))

    def row(name, what, ours, base, tell, target=None):
        a, b = ([result[what] for result in results[each]] for each in (ours, base))
        return Row(name, median(x / y for x, y in zip(a, b)), "×", tell(median(a), median(b)), rounds, target)

    rows = []
    for mode, each in (("remus", "remus"), ("colo", "100ms")):
        rows.append(row(f"redis_vs_none_{mode}", "redis", each, "none",
                        lambda a, b: f"GET, 8 connections: {a:.0f}/s; none {b:.0f}/s"))
        rows.append(row(f"bulk_linux_vs_none_{mode}", "bulk", each, "none",
                        lambda a, b: f"16 MiB from nginx: {a / 1e6:.2f} MB/s; none {b / 1e6:.2f} MB/s",
                        ">= 0.5" if mode == "colo" else None))
    for period, target in (("100ms", "<= 1.3"), ("2s", "<= 1.1")):
        taken = json.dumps(results[period][-1]["status"]["checkpoints"])
        rows.append(row(f"echo_vs_none_{period}", "echo", period, "run",
                        lambda a, b: f"PING, p50 {a:.1f} ms; unprotected {b:.1f} ms; checkpoints {taken}", target))
    rows.append(Row("echo_slower_of_two", median(each["slower"] / each["echo"] for each in results["run"]), "×",
                    "the slower of two unprotected guests beside one, by chance alone: what comparing both can't beat", rounds))
    pauses = [result["status"]["pauseMicroseconds"] for result in results["100ms"]]
    rows.append(Row("linux_pause_p50_ms", median(each["p50"] for each in pauses) / 1000, "ms",
                    f"128 MiB, longest {max(each['max'] for each in pauses) / 1000:.1f} ms", rounds))
    rows.append(Row("linux_pause_p99_ms", median(each["p99"] for each in pauses) / 1000, "ms", "", rounds))
    return rows
