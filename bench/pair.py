"""A protected guest: primary and client on core 0, secondary on core 1, as on two hosts."""

import json
import os
import tempfile
import time

import network
from machine import Machine, output
from measure import Unavailable

HERE, THERE = {0}, {1}


class Pair:
    """Use in a `with` block, in a network.Bridge. `mode` none, remus or colo; "run" is the guest without a pair."""

    def __init__(self, options, space, mode, guest, memory=64, period="100ms", disk=None):
        if len(os.sched_getaffinity(0)) < 2:
            raise Unavailable("a pair is measured on two cores")
        self.options, self.space, self.mode, self.disk = options, space, mode, disk
        self.folder = tempfile.TemporaryDirectory(prefix="minivmm-bench-")
        self.key = f"{self.folder.name}/key"
        with open(os.open(self.key, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(os.urandom(32))
        port = 7001
        self.follow = [options.minivmm, "secondary", "--listen", f"127.0.0.1:{port}", "--key", self.key, "--net", "tap=tap1",
                       "--control", f"{self.folder.name}/secondary"]
        self.serve = [options.minivmm, "run" if mode == "run" else "primary", *guest, "--memory", f"{memory}M", "--net",
                      "tap=tap0", "--control", f"{self.folder.name}/primary"]
        if disk:
            self.follow += ["--disk", f"{self.folder.name}/copy.img"]
            with open(f"{self.folder.name}/copy.img", "wb") as file:
                file.truncate(os.path.getsize(disk))
        if mode != "run":
            self.serve += ["--replicate", f"127.0.0.1:{port}", "--key", self.key, "--mode", mode, "--epoch-max", period]
        self.primary = self.secondary = None

    def __enter__(self):
        try:
            if self.mode != "run":
                self.secondary = Machine(self.follow, THERE, self.space.name).__enter__()
                self.secondary.wait_for("waiting for a primary", 20)
            self.primary = Machine(self.serve, HERE, self.space.name).__enter__()
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for machine in (self.primary, self.secondary):
            if machine:
                machine.__exit__()
        self.folder.cleanup()

    def wait_until_protected(self, ready="lab: ready", seconds=30):
        self.primary.wait_for(ready, seconds)
        if self.mode != "run":
            self.primary.wait_for("pair: now primary", 30)

    def status(self, side="primary"):
        command = [self.options.minivmm, "status", "--json", "--control", f"{self.folder.name}/{side}"]
        return json.loads(output(command, 10))["pair"]

    def client(self, command, seconds=60):
        return output(command, seconds, HERE, self.space.name)


def lab(options, words):
    return ["--kernel", options.lab, "--cmdline", f"{words} {network.WORDS}"]


def cpu_seconds(process):
    """User and system time of a process until now."""
    with open(f"/proc/{process.pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(seconds=0.5):
    """What starting leaves behind is over after that."""
    time.sleep(seconds)
