"""QEMU's COLO with both sides on this host, all channels unix sockets, without block replication: each has its own copy of
the disk, which the guest does not write to while it is measured. Primary on core 0, secondary on core 1."""

import json
import os
import shutil
import socket
import tempfile
import time

from machine import Machine, qemu
from pair import HERE, THERE


class Control:
    """QMP on a unix socket: commands, and events with their times."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)  # a hung QEMU must not hang who measures it
        for _ in range(100):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.1)
        self.file = self.socket.makefile("rw")
        self.events = []
        self.file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            reply = json.loads(self.file.readline())
            if "event" in reply:
                self._note(reply)
            elif "error" in reply:
                raise RuntimeError(f"{command}: {reply['error']}")
            else:
                return reply["return"]

    def _note(self, event):
        stamp = event["timestamp"]
        self.events.append((event["event"], stamp["seconds"] + stamp["microseconds"] / 1e6))

    def pauses(self):
        """Seconds between each STOP and the RESUME that follows, so far."""
        self.ask("query-status")
        found, stopped = [], None
        for name, when in self.events:
            if name == "STOP":
                stopped = when
            elif name == "RESUME" and stopped:
                found.append(when - stopped)
                stopped = None
        return found


class QEMUPair:
    def __init__(self, space, files, words, memory, period, bare=False):
        """`bare` leaves out what compares: without a secondary it would hold every reply."""
        self.space, self.period = space, period
        self.folder = tempfile.TemporaryDirectory(prefix="minivmm-bench-")
        at = self.folder.name
        kernel, initrd, line, image = files
        with open(line) as file:
            words = f"{file.read().strip()} {words}"

        def side(tap, name, *more):
            shutil.copyfile(image, f"{at}/{name}.img")
            return [*qemu(kernel, words, memory), "-initrd", initrd,
                    "-netdev", f"tap,id=hn0,ifname={tap},script=no,downscript=no,vhost=off,vnet_hdr=off",
                    "-device", "virtio-net-device,netdev=hn0", "-drive", f"if=none,id=d0,format=raw,file={at}/{name}.img",
                    "-device", "virtio-blk-device,drive=d0", "-qmp", f"unix:{at}/{name}.qmp,server=on,wait=off", *more]

        def chardev(name, path, *more):
            return ["-chardev", ",".join([f"socket,id={name},path={at}/{path}", *more])]

        listening = ("server=on", "wait=off")
        self.first = side(
            "tap0", "first", *chardev("mirror0", "mirror", *listening), *chardev("compare1", "compare1", *listening),
            *chardev("compare0", "compare0", *listening), *chardev("compare0-0", "compare0"),
            *chardev("compare_out", "out", *listening), *chardev("compare_out0", "out"),
            "-object", "filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0",
            "-object", "filter-redirector,netdev=hn0,id=redire0,queue=rx,indev=compare_out",
            "-object", "filter-redirector,netdev=hn0,id=redire1,queue=rx,outdev=compare0",
            "-object", "iothread,id=iothread1",
            "-object", "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0,iothread=iothread1")
        self.second = side(
            "tap1", "second", *chardev("red0", "mirror", "reconnect=1"), *chardev("red1", "compare1", "reconnect=1"),
            "-object", "filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0",
            "-object", "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1",
            "-object", "filter-rewriter,id=rew0,netdev=hn0,queue=all", "-incoming", f"unix:{at}/migration")
        if bare:
            self.first = side("tap0", "first")
        self.machines = []

    def __enter__(self):
        self.machines.append(Machine(self.first, HERE, self.space.name).__enter__())
        return self

    def __exit__(self, *_):
        for machine in self.machines:
            machine.__exit__()
        self.folder.cleanup()

    def protect(self):
        """Starts the secondary and COLO; returns when checkpoints are taken."""
        at = self.folder.name
        self.machines.append(Machine(self.second, THERE, self.space.name).__enter__())
        secondary = Control(f"{at}/second.qmp")
        on = [{"capability": "x-colo", "state": True}]
        secondary.ask("migrate-set-capabilities", capabilities=on)
        self.control = Control(f"{at}/first.qmp")
        self.control.ask("migrate-set-capabilities", capabilities=on)
        self.control.ask("migrate-set-parameters", **{"x-checkpoint-delay": self.period, "max-bandwidth": 10 << 30})
        self.control.ask("migrate", uri=f"unix:{at}/migration")
        end = time.monotonic() + 60
        while len(self.control.pauses()) < 3:
            if time.monotonic() > end:
                raise RuntimeError(f"COLO did not start: {self.control.ask('query-migrate')}")
            time.sleep(0.2)

    @property
    def secondary(self):
        return self.machines[1].process


def resident_mib(process):
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
