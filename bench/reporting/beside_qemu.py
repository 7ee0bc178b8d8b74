"""QEMU's COLO with the same Linux guest."""

import shutil

from measure import Row, Unavailable
from reporting import svg_time
from topics import colo_qemu

NAME = "qemu"
TITLE = "Beside QEMU’s COLO"
TEXT = """The same Linux guest, both sides on this machine, a checkpoint every 100 ms: minivmm in mode <i>colo</i> and QEMU with
its <code>colo-compare</code>, each beside its own unprotected guest."""


def measure(options, tell):
    if not shutil.which("qemu-system-x86_64"):
        raise Unavailable("there is no qemu-system-x86_64")
    tell("two boots of ours and two of QEMU's; minutes")
    mine, other = colo_qemu.measure(options)
    return {"minivmm": mine, "QEMU": other}


def figures(data):
    return [*colo_qemu.rows(data["minivmm"], data["QEMU"]),
            Row("redis_ping_ms_colo", data["minivmm"]["echo"], "ms", f"QEMU {data['QEMU']['echo']:.1f} ms", 1)]


WHAT = (("p50", "pause, p50", "ms", 1), ("p99", "pause, p99", "ms", 1), ("cost", "secondary's CPU a checkpoint", "ms", 1000),
        ("extra", "secondary's memory beyond RAM", "MiB", 1), ("alone", "redis PING, unprotected", "ms", 1),
        ("echo", "redis PING, protected", "ms", 1), ("differing", "redis TIME (always differs)", "ms", 1))


def plots(data):
    rows = [(label, unit, data["minivmm"][key] * scale, data["QEMU"][key] * scale) for key, label, unit, scale in WHAT]
    return [(svg_time.beside("minivmm colo beside QEMU COLO", "shorter is better; each row has its own scale", rows),
             "One run of each. Memory counts each page once.")]
