"""Linux with memcached, nginx and redis, by mode."""

import json
import subprocess
import sys

import network
from machine import GuestFailed
from measure import Row, Unavailable, median
from reporting import modes, svg
from topics import linux, linux_pair

NAME = "linux"
TITLE = "Linux: memcached, nginx, redis"
TEXT = """Debian's programs in a Linux guest of 128 MiB and one vCPU, 8 connections. Where KVM interprets the guest's kernel
(see the machine below) a request takes it tens of milliseconds, and these ratios say little about other hosts."""
CLIENTS = (("memcached", "memcached get"), ("nginx", "nginx, small file"), ("piece", "nginx, 128 KiB again"),
           ("redis", "redis GET"), ("bulk", "nginx, 16 MiB"))
BYTES_A_SECOND = {"piece", "bulk"}
# A piece of a file, and how often it is fetched: for the first time nobody knows what the checkpoints hold of it.
PIECE, FETCHES = 128 << 10, 9


def measure(options, tell):
    names, reason = linux.files(options)
    if not names:
        raise Unavailable(reason)
    requests = 120 if options.quick else 240
    rounds = 1 if options.quick else 3
    results = {mode: [] for mode in modes.MODES}
    with network.Bridge() as space:
        for turn in range(rounds):
            for mode in modes.MODES:
                tell(f"{mode}, round {turn + 1} of {rounds}: boots")
                try:
                    results[mode].append(one(options, space, names, mode, requests, tell))
                except (GuestFailed, subprocess.SubprocessError) as failure:  # the others can still be measured
                    tell(f"{mode}: {failure}")
    if not results["none"]:
        raise Unavailable("the guest could not be measured in mode none")
    return results


def one(options, space, names, mode, requests, tell):
    result = {}
    with linux_pair.serving(options, space, names, mode) as (pair, client, folder):
        tell(f"{mode}: clients")

        def server(name):
            said = json.loads(client([sys.executable, "-B", f"{options.root}/bench/programs/fetch.py", name, network.GUEST, "8",
                                      str(requests)]))
            result[f"{name}_load"] = said
            return said["per_second"]
        for what, run in (("memcached", lambda: server("memcached")), ("nginx", lambda: server("nginx")),
                          ("piece", lambda: piece(client)), ("redis", lambda: linux_pair.redis(client, requests)),
                          ("bulk", lambda: linux_pair.bulk(options, client, folder))):
            before = pair.status()["held"]
            result[what] = run()
            after = pair.status()["held"]
            result[f"{what}_frames"] = {way: after[way] - before[way] for way in ("early", "equal", "checkpointed")}
        result["status"] = pair.status()
    return result


def piece(client):
    """Bytes a second of a piece of a file that has been fetched before."""
    each = ["-o", "/dev/null", f"http://{network.GUEST}/1MiB.txt"]
    said = client(["curl", "-sf", "-r", f"0-{PIECE - 1}", "-w", "%{http_code} %{size_download} %{time_total}\n"] + each * FETCHES)
    times = []
    for line in said.splitlines():
        code, size, seconds = line.split()
        if code != "206" or int(size) != PIECE:
            raise GuestFailed(f"nginx answered {code} with {size} bytes of {PIECE}")
        times.append(float(seconds))
    return PIECE * (FETCHES - 1) / sum(times[1:])


def ratios(data, mode, what):
    return [a[what] / b[what] for a, b in zip(data[mode], data["none"])]


def figures(data):
    rows = []
    for what, label in CLIENTS:
        for mode in modes.MODES[1:]:
            name = f"linux_{what}_vs_none_{modes.name(mode)}"
            parts = ratios(data, mode, what)
            if not parts:
                rows.append(Row(name, None, "", f"failed in {mode}"))
                continue
            ours, base = (median(each[what] for each in data[side]) for side in (mode, "none"))
            scale, unit = 1, "/s"
            if what in BYTES_A_SECOND:
                scale, unit = 1e-6, " MB/s"
            parts.sort()
            ways = data[mode][0][f"{what}_frames"]
            rows.append(Row(name, median(parts), "×",
                            f"{label}: {ours * scale:.3g}{unit}; none {base * scale:.3g}{unit}; {parts[0]:.2f} to "
                            f"{parts[-1]:.2f}; frames early {ways['early']}, equal {ways['equal']}, with a checkpoint "
                            f"{ways['checkpointed']}", len(parts)))
    return rows


def plots(data):
    groups = []
    for what, label in CLIENTS:
        base = data["none"][0][what]
        told = f"none: {base / 1e6:.2f} MB/s" if what in BYTES_A_SECOND else f"none: {base:.0f}/s"
        bars = []
        for mode in modes.MODES[1:]:
            parts = ratios(data, mode, what)
            if parts:
                bars.append((mode, sorted(parts)[len(parts) // 2], min(parts), max(parts)))
        groups.append((label, told, bars))
    rounds = len(data["none"])
    return [(svg.bars("Services in Linux: throughput by mode",
                      f"÷ that of a pair that holds nothing back (none); rounds: {rounds}", groups, "throughput ÷ none",
                      reference=(1, "none")),
             "A few hundred requests each: small differences mean nothing here.")]
