"""Redis and nginx in the protected Linux guest, by mode, and the latency of one reply."""

import json
import re
import tempfile

import network
from measure import Row, Unavailable
from pair import Pair
from topics import linux

NAME = "linux_pair"
MODES = (("run", "100ms"), ("remus", "100ms"), ("colo", "100ms"), ("colo", "2s"))
ROWS = ["redis_vs_none_remus", "redis_vs_none_colo", "bulk_linux_vs_none_remus", "bulk_linux_vs_none_colo",
        "echo_vs_none_100ms", "echo_vs_none_2s", "linux_pause_p50_ms", "linux_pause_p99_ms"]


def measure(options, space, names, mode, period):
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        disk = f"{folder}/root.img"
        command = linux.boot(options, names, disk, linux.NETWORK)
        guest = [word for word in command[2:] if word not in ("--memory", f"{linux.MEMORY_MIB}M")]
        with Pair(options, space, mode, guest, linux.MEMORY_MIB, period, disk) as pair:
            pair.wait_until_protected(linux.SERVING, 240)
            requests = 200 if options.quick else 600
            redis = ["redis-benchmark", "-h", network.GUEST, "--csv"]
            text = pair.client([*redis, "-c", "8", "-n", str(requests), "-t", "get"], 120)
            one = pair.client([*redis, "-c", "1", "-n", str(requests // 4), "-t", "ping_mbulk"], 120)
            speed = pair.client(["curl", "-s", "-o", "/dev/null", "-w", "%{speed_download}",
                                 f"http://{network.GUEST}/{names_of_file(options)}"], 120)
            status = pair.status() if mode != "run" else None
    return {"redis": float(re.search(r'"GET","([\d.]+)"', text)[1]), "bulk": float(speed),
            # The columns are rate, average, least, p50, …
            "echo": float(re.search(r'"PING_MBULK","[\d.]+","[\d.]+","[\d.]+","([\d.]+)"', one)[1]), "status": status}


def names_of_file(options):
    """The path of a large file that nginx serves."""
    with open(f"{options.root}/guests/linux/out/www.sha256") as file:
        return re.search(r"\S*?([^/\s]*1MiB\S*)", file.read())[1]


def run(options):
    names, reason = linux.files(options)
    if not names:
        raise Unavailable(reason)
    with network.Bridge() as space:
        results = {each: measure(options, space, names, *each) for each in MODES}
    base, remus, colo, slow = (results[each] for each in MODES)
    pauses = colo["status"]["pauseMicroseconds"]
    rows = []
    for mode, result in (("remus", remus), ("colo", colo)):
        rows.append(Row(f"redis_vs_none_{mode}", result["redis"] / base["redis"], "×",
                        f"GET, 8 connections: {result['redis']:.0f}/s; unprotected {base['redis']:.0f}/s", 1))
        rows.append(Row(f"bulk_linux_vs_none_{mode}", result["bulk"] / base["bulk"], "×",
                        f"1 MiB from nginx: {result['bulk'] / 1e6:.2f} MB/s; unprotected {base['bulk'] / 1e6:.2f} MB/s", 1,
                        ">= 0.5" if mode == "colo" else None))
    for period, result, target in (("100ms", colo, "<= 1.3"), ("2s", slow, "<= 1.1")):
        rows.append(Row(f"echo_vs_none_{period}", result["echo"] / base["echo"], "×",
                        f"PING, p50 {result['echo']:.1f} ms; unprotected {base['echo']:.1f} ms; "
                        f"checkpoints {json.dumps(result['status']['checkpoints'])}", 1, target))
    rows.append(Row("linux_pause_p50_ms", pauses["p50"] / 1000, "ms", f"128 MiB, longest {pauses['max'] / 1000:.1f} ms", 1))
    rows.append(Row("linux_pause_p99_ms", pauses["p99"] / 1000, "ms", "", 1))
    return rows
