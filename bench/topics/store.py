"""redis-benchmark GET against the lab guest's store, beside the same guest under QEMU microvm."""

import re

import network
from machine import Machine, minivmm, output, qemu
from measure import Row, median, pairs, ratio

NAME = "store"
ROWS = ["lab_tcp_get_vs_qemu"]


def run(options):
    requests = 10000 if options.quick else 50000
    words = f"service=kv {network.WORDS}"
    with network.Namespace() as space:

        def measure(command):
            with Machine(command, namespace=space.name) as machine:
                machine.wait_for("lab: ready", 30)
                client = ["redis-benchmark", "-h", network.GUEST, "-c", "20", "--csv", "-t"]
                output([*client, "set", "-n", "1000"], 60, namespace=space.name)  # the key, ARP, and pages touched
                text = output([*client, "get", "-n", str(requests)], 60, namespace=space.name)
                return float(re.search(r'"GET","([\d.]+)"', text)[1])

        ours, theirs = pairs(
            options.rounds,
            lambda: measure(minivmm(options, options.lab, words, extra=network.MINIVMM)),
            lambda: measure(qemu(options.lab, words, extra=network.QEMU)))
    return [Row("lab_tcp_get_vs_qemu", ratio(ours, theirs), "×",
                f"{median(ours):.0f}/s; QEMU {median(theirs):.0f}/s", len(ours), ">= 1.3")]
