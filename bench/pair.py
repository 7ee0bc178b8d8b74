"""A protected guest: primary and client on core 0, secondary on core 1, as on two hosts."""

import json
import os
import re
import subprocess
import tempfile
import time

import network
from machine import GuestFailed, Machine, output
from measure import Unavailable

HERE, THERE = {0}, {1}


class Pair:
    """Use in a `with` block, in a network.Bridge. `mode` none, remus or colo; "run" is the guest without a pair.

    A guest that lost its protection while it was measured would look fast: once protected, it must be so to the end of the
    block, unless `may_end` was set. `follower` are more options of the secondary; with `shared` both sides have both cores."""

    def __init__(self, options, space, mode, guest, memory=64, period="100ms", disk=None, follower=(), shared=False):
        if len(os.sched_getaffinity(0)) < 2:
            raise Unavailable("a pair is measured on two cores")
        self.options, self.space, self.mode, self.disk = options, space, mode, disk
        self.cores = (HERE | THERE, HERE | THERE) if shared else (HERE, THERE)
        self.folder = tempfile.TemporaryDirectory(prefix="minivmm-bench-")
        self.key = f"{self.folder.name}/key"
        with open(os.open(self.key, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(os.urandom(32))
        port = 7001
        self.follow = [options.minivmm, "secondary", "--listen", f"127.0.0.1:{port}", "--key", self.key, "--net", "tap=tap1",
                       "--control", f"{self.folder.name}/secondary", *follower]
        self.serve = [options.minivmm, "run" if mode == "run" else "primary", *guest, "--memory", f"{memory}M", "--net",
                      "tap=tap0", "--control", f"{self.folder.name}/primary"]
        if disk:
            self.follow += ["--disk", f"{self.folder.name}/copy.img"]
            with open(f"{self.folder.name}/copy.img", "wb") as file:
                file.truncate(os.path.getsize(disk))
        if mode != "run":
            self.serve += ["--replicate", f"127.0.0.1:{port}", "--key", self.key, "--mode", mode, "--epoch-max", period]
        self.primary = self.secondary = None
        self.protected_at = None  # where in the primary's console it says so
        self.may_end = False

    def __enter__(self):
        try:
            if self.mode != "run":
                self.secondary = Machine(self.follow, self.cores[1], self.space.name).__enter__()
                self.secondary.wait_for("waiting for a primary", 20)
            self.primary = Machine(self.serve, self.cores[0], self.space.name).__enter__()
            return self
        except BaseException:
            self.__exit__(BaseException)
            raise

    def __exit__(self, kind=None, *_):
        try:
            if kind is None and not self.may_end and self.primary:
                self.check()
        finally:
            for machine in (self.primary, self.secondary):
                if machine:
                    machine.__exit__()
            self.folder.cleanup()

    def check(self):
        said = self.primary.tail()
        ended = [side for side in (self.primary, self.secondary) if side and side.process.poll() is not None]
        lost = self.protected_at and re.search(r"pair: (now )?(alone|fenced)", self.primary.text[self.protected_at:])
        if ended or lost:
            other = f"; secondary: {self.secondary.tail()}" if self.secondary else ""
            raise GuestFailed(f"{self.mode}: the pair did not last while it was measured; primary: {said}{other}")

    def wait_until_protected(self, ready="lab: ready", seconds=30):
        self.primary.wait_for(ready, seconds)
        if self.mode != "run":
            self.protected_at = self.primary.wait_for("pair: now primary", 30).end()

    def status(self, side="primary"):
        command = [self.options.minivmm, "status", "--json", "--control", f"{self.folder.name}/{side}"]
        try:
            return json.loads(output(command, 10))["pair"]
        except (subprocess.SubprocessError, KeyError) as failure:
            self.check()
            raise GuestFailed(f"{self.mode}: no status of the {side}: {failure}") from failure

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
