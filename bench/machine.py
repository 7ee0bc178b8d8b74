"""A guest under minivmm, QEMU or another program: started, listened to, ended by its process id."""

import re
import select
import signal
import subprocess
import time

QEMU = ["qemu-system-x86_64", "-M", "microvm,x-option-roms=off,pit=off,pic=off,isa-serial=on,rtc=off,acpi=off",
        "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-smp", "1", "-nodefaults", "-display", "none",
        "-serial", "stdio", "-no-reboot", "-global", "virtio-mmio.force-legacy=false"]


def minivmm(options, kernel, words="", memory=64, extra=()):
    return [options.minivmm, "run", "--kernel", kernel, "--cmdline", words, "--memory", f"{memory}M", *extra]


def qemu(kernel, words="", memory=64, extra=()):
    return [*QEMU, "-m", str(memory), "-kernel", kernel, "-append", words, *extra]


def placed(command, cpus=None, namespace=None):
    """The command with the priority (above the host's other work, alike for all), CPUs and network it runs with."""
    if cpus is not None:
        command = ["taskset", "-c", cpus, *command]
    if namespace:
        command = ["ip", "netns", "exec", namespace, *command]
    return ["nice", "-n", "-15", *command]


class GuestFailed(Exception):
    pass


class Machine:
    """A process whose console is its standard output. Use in a `with` block."""

    def __init__(self, command, cpus=None, namespace=None):
        self.command = placed(command, cpus, namespace)
        self.text = ""

    def __enter__(self):
        self.started = time.monotonic()
        # nice, taskset and ip exec what they start, so this process id is the VMM's.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
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

    def wait_for(self, pattern, seconds):
        """Waits until the console matches; the match. The time of the last read is left in `seen`."""
        end = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.text)
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
    return subprocess.run(placed(command, cpus, namespace), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          timeout=seconds, check=True, text=True).stdout
