"""A network namespace with one tap, made and removed by the run."""

import os
import subprocess

GUEST = "10.0.0.2"
HOST = "10.0.0.1"
WORDS = f"ip={GUEST}/24 gw={HOST}"
MINIVMM = ["--net", "tap=tap0"]
QEMU = ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=off", "-device",
        "virtio-net-device,netdev=n0"]


class Namespace:
    def __init__(self):
        self.name = f"minivmm-bench-{os.getpid()}"

    def __enter__(self):
        self._ip("netns", "add", self.name)
        for words in ("link set lo up", "tuntap add tap0 mode tap", f"address add {HOST}/24 dev tap0",
                      "link set tap0 up"):
            self._ip("-n", self.name, *words.split())
        return self

    def __exit__(self, *_):
        self._ip("netns", "delete", self.name)

    def keep_neighbour(self, address):
        """Its Ethernet address, known now, is not asked for again."""
        self._ip("-n", self.name, *f"neighbour change {address} dev tap0 nud permanent".split())

    def set_neighbour(self, address, mac):
        self._ip("-n", self.name, *f"neighbour replace {address} lladdr {mac} dev tap0 nud permanent".split())

    def forget_neighbour(self, address):
        self._ip("-n", self.name, *f"neighbour delete {address} dev tap0".split())

    @staticmethod
    def _ip(*words):
        subprocess.run(["ip", *words], check=True)


class Bridge(Namespace):
    """Two taps on a bridge, where the clients are as well: the network of a pair."""

    def __enter__(self):
        self._ip("netns", "add", self.name)
        for words in ("link set lo up", "link add bridge0 type bridge", f"address add {HOST}/24 dev bridge0",
                      "link set bridge0 up"):
            self._ip("-n", self.name, *words.split())
        for tap in ("tap0", "tap1"):
            for words in (f"tuntap add {tap} mode tap", f"link set {tap} master bridge0", f"link set {tap} up"):
                self._ip("-n", self.name, *words.split())
        return self
