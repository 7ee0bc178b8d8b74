"""Exits a second of the run loop, beside a bare KVM_RUN loop in C, on the same guest."""

from machine import Machine, minivmm
from measure import Row, median, pairs, ratio

NAME = "exits"
ROWS = ["exits_vs_c"]


def run(options):
    # A ring-0 loop of port writes that nobody answers.
    count = 20000 if options.quick else 50000
    words = f"service=exits,poweroff exits=count:{count}"

    def rate(command):
        # One core: a thread that shares none of its work with others.
        with Machine(command, cpus={1}) as machine:
            found = machine.wait_for(r"kind=pio count=\d+ ns_each=(\d+)\s", 60)
            return 1e9 / int(found[1])

    ours, bare = pairs(
        options.rounds,
        lambda: rate(minivmm(options, options.lab, words, extra=["--console", "stdio"])),
        lambda: rate([f"{options.programs}/kvm_loop", options.lab, words]))
    return [Row("exits_vs_c", ratio(ours, bare), "×", f"{median(ours):.0f}/s; C loop {median(bare):.0f}/s",
                len(ours), ">= 0.95")]
