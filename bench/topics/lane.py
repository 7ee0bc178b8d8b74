"""Redis and memcached in Linux in the lane (docs/lane.md), an emulated AMD host: by mode, and beside QEMU there."""

import json
import os
import subprocess
import tempfile

import network
from machine import GuestFailed, output
from measure import Row, Unavailable, median
from pair import HERE, Pair
from qemu_colo import QEMUPair
from topics import linux
from topics.threads import threads

NAME = "lane"
ROWS = ["lane_redis_run_vs_qemu", "lane_redis_colo_vs_run", "lane_memcached_colopp_vs_run", "lane_primary_cpu_colo_vs_run",
        "lane_secondary_cpu_colo_vs_run"]
MODES = ("qemu", "run", "none", "colo", "colo++")
PORTS = {"redis": 6379, "memcached": 11211}
CONNECTIONS = 5
KEYS = 1000  # that kv_load sets
PERIOD = "5s"  # as 50 ms on a host that is a hundred times faster
WORDS = f"{linux.NETWORK} minivmm.services=redis,memcached"


def load(options, space, server, seconds):
    return json.loads(output([f"{options.programs}/kv_load", network.GUEST, str(PORTS[server]), str(CONNECTIONS), "1", "95",
                              str(seconds), "0"], 5 * seconds + 120, HERE, space.name))


def serve(options, space, sides, seconds):
    """Of each server the replies a second, and by side the milliseconds of CPU a reply by thread, the most first."""
    result = {}
    for server in PORTS:
        load(options, space, server, 2)
        before = {side: threads(machine.process) for side, machine in sides.items()}
        measured = load(options, space, server, seconds)
        # Setting the keys and warming up, a fifth of the time, cost CPU time too.
        count = KEYS + 1.2 * measured["replies"]
        cpu = {}
        for side, machine in sides.items():
            old = before[side]
            parts = [(thread, (time - old.get(thread, (0, 0))[0]) / 1e6 / count)
                     for thread, (time, _) in threads(machine.process).items()]
            cpu[side] = sorted(parts, key=lambda each: -each[1])
        result[server] = {"per_second": measured["per_second"], "cpu": cpu}
    return result


def measure(options, space, names, mode):
    seconds = 4 if options.quick else 10
    if mode == "qemu":
        with QEMUPair(space, names, WORDS, linux.MEMORY_MIB, 0, bare=True) as qemu:
            qemu.machines[0].wait_for(linux.SERVING, 240)
            return serve(options, space, {"primary": qemu.machines[0]}, seconds)
    with tempfile.TemporaryDirectory(prefix="minivmm-bench-") as folder:
        disk = f"{folder}/root.img"
        guest = linux.guest(options, names, disk, "minivmm.services=redis,memcached")
        with Pair(options, space, mode, guest, linux.MEMORY_MIB, PERIOD, disk) as pair:
            pair.wait_until_protected(linux.SERVING, 240)
            sides = {"primary": pair.primary, "secondary": pair.secondary}
            return serve(options, space, {side: machine for side, machine in sides.items() if machine}, seconds)


def told(runs, mode, server):
    """Replies a second, and what they cost: by side, then by thread of the last run."""
    rate = median(each[server]["per_second"] for each in runs[mode])
    text = f"{mode} {rate:.0f}/s"
    for side, parts in runs[mode][-1][server]["cpu"].items():
        threads_told = ", ".join(f"{thread} {time:.2f}" for thread, time in parts if time >= 0.02)
        text += f", {side} {sum(time for _, time in parts):.2f} ms ({threads_told})"
    return text


def inside(options):
    """The rows, measured here: in the lane."""
    names, reason = linux.files(options)
    if not names:
        raise Unavailable(reason)
    rounds = 1 if options.quick else 3
    runs = {mode: [] for mode in MODES}
    with network.Bridge() as space:
        for _ in range(rounds):
            for mode in MODES:
                runs[mode].append(measure(options, space, names, mode))

    def rate(mode, server):
        return [each[server]["per_second"] for each in runs[mode]]

    def cost(mode, side, server="redis"):
        return [sum(time for _, time in each[server]["cpu"][side]) for each in runs[mode]]

    def row(name, ours, base, against):
        return Row(name, median(a / b for a, b in zip(ours, base)), "×", "; ".join(against), rounds)

    return [
        row(ROWS[0], rate("run", "redis"), rate("qemu", "redis"), [told(runs, each, "redis") for each in ("run", "qemu")]),
        row(ROWS[1], rate("colo", "redis"), rate("run", "redis"), [told(runs, each, "redis") for each in ("colo", "none", "colo++")]),
        row(ROWS[2], rate("colo++", "memcached"), rate("run", "memcached"), [told(runs, each, "memcached") for each in MODES]),
        row(ROWS[3], cost("colo", "primary"), cost("run", "primary"), ["CPU a reply of redis, primary's process beside run's"]),
        row(ROWS[4], cost("colo", "secondary"), cost("run", "primary"), ["the same of the secondary's process"]),
    ]


def run(options):
    if os.environ.get("MINIVMM_LANE"):
        return inside(options)
    boot, folder = f"{options.root}/scripts/lane/boot", f"{options.root}/.build/lane-bench"
    command = ["python3", "-B", "bench/bench.py", "--minivmm", options.minivmm, "--programs", options.programs, "--json", NAME]
    lane = subprocess.run([boot, "3600", folder, *command, *(["--quick"] if options.quick else [])],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    lines = [line for line in lane.stdout.splitlines() if line.startswith('{"name"')]
    if lane.returncode == 75:
        raise Unavailable("the lane cannot be made here")
    if not lines:
        raise GuestFailed(f"nothing was measured in the lane:\n{lane.stdout[-2000:]}")
    return [Row(**json.loads(line)) for line in lines]
