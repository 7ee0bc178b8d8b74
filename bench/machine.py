"""A guest under minivmm, QEMU or another program: started, listened to, ended by its process id."""

import os
import re
import select
import signal
import struct
import subprocess
import time

QEMU = ["qemu-system-x86_64", "-M", "microvm,x-option-roms=off,pit=off,pic=off,isa-serial=on,rtc=off,acpi=off",
        "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-smp", "1", "-nodefaults", "-display", "none",
        "-serial", "stdio", "-no-reboot", "-global", "virtio-mmio.force-legacy=false"]


def minivmm(options, kernel, words="", memory=64, extra=()):
    return [options.minivmm, "run", "--kernel", kernel, "--cmdline", words, "--memory", f"{memory}M", *extra]


def qemu(kernel, words="", memory=64, extra=()):
    return [*QEMU, "-m", str(memory), "-kernel", kernel, "-append", words, *extra]


def raise_priority():
    """Above the host's other work, alike for all. With autogroup scheduling a nice value counts within its session only,
    and the session has one of its own. Returns what undoes the latter."""
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    group = "/proc/self/autogroup"
    if not os.path.exists(group):
        return lambda: None
    with open(group) as file:
        before = file.read().split()[-1]

    def set_to(nice):
        with open(group, "w") as file:
            file.write(nice)
    set_to("-10")
    return lambda: set_to(before)


def placed(cpus=None, clock=None):
    """What a started process does first: a session of its own, its priority, its CPUs. The time at which it becomes its
    program goes to the descriptor `clock`."""
    def place():
        os.setsid()
        raise_priority()
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        if clock is not None:
            os.write(clock, struct.pack("d", time.monotonic()))
    return place


def inside(namespace, command):
    return ["ip", "netns", "exec", namespace, *command] if namespace else command


class GuestFailed(Exception):
    pass


OWN = re.compile(r"minivmm: pair: [^\n]*\n")  # the VMM's messages may come within a line of its guest's


class Machine:
    """A process whose console is its standard output. Use in a `with` block."""

    def __init__(self, command, cpus=None, namespace=None):
        self.command = inside(namespace, command)
        self.cpus = cpus
        self.text = ""

    def __enter__(self):
        times, clock = os.pipe()
        # `ip netns exec` becomes what it starts, so this process id is the VMM's.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
            preexec_fn=placed(self.cpus, clock))
        self.started = struct.unpack("d", os.read(times, 8))[0]
        os.close(times)
        os.close(clock)
        return self

    def __exit__(self, *_):
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
            try:
                self.process.wait(5)
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.stdout.close()

    def tail(self):
        """What it has said lately, without waiting."""
        while select.select([self.process.stdout], [], [], 0)[0]:
            data = self.process.stdout.read(4096)
            if not data:
                break
            self.text += data.decode(errors="replace")
        return self.text[-400:].strip()

    def wait_for(self, pattern, seconds):
        """Waits until the console matches; the match. The time of the last read is left in `seen`."""
        end = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.text) or re.search(pattern, OWN.sub("", self.text))
            if match:
                return match
            left = end - time.monotonic()
            ready = left > 0 and select.select([self.process.stdout], [], [], left)[0]
            data = self.process.stdout.read(4096) if ready else b""
            self.seen = time.monotonic()
            if not data:
                why = "ended" if ready else f"said nothing more for {seconds} s"
                raise GuestFailed(f"{' '.join(self.command)}\n{why} before '{pattern}': {self.text[-400:]}")
            self.text += data.decode(errors="replace")


def output(command, seconds, cpus=None, namespace=None):
    """Runs a client to its end; its standard output."""
    return subprocess.run(inside(namespace, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          timeout=seconds, check=True, text=True, preexec_fn=placed(cpus)).stdout
