"""What the machine is, as `minivmm doctor` finds it, and what that does to the figures."""

import os
import re
import subprocess

# What doctor says of a property, and what follows for figures.
CONSEQUENCES = (
    (r"kernel code\s+interpreted", "KVM interprets the guest's kernel code here, a few million instructions a second. Linux' "
     "kernel is hundreds of times slower than on a host with VMX or SVM, so that its services answer tens of times a second; "
     "their ratios say little about such a host. The lab guest works in user mode, which runs natively: its figures say "
     "more of the VMM, but each of its exits and interrupts is dearer than on such a host."),
    (r"translations\s+stale", "Page tables are shadowed. After each load the secondary's memslots are made anew and its "
     "guest's page tables shadowed again, at every checkpoint: CPU time of the secondary and the time of a load are "
     "higher than with nested paging."),
    (r"KVM_CAP_TSC_CONTROL\s+absent", "The rate of a guest's time stamp counter can't be set: of no consequence to figures taken "
     "on one machine."),
)


def note(minivmm):
    """What the report keeps of the machine: doctor's lines, and sentences."""
    try:
        said = subprocess.run([minivmm, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as failure:
        said = f"minivmm doctor could not be run: {failure}"
    cores = len(os.sched_getaffinity(0))
    with open("/proc/cpuinfo") as file:
        text = file.read()
    model = re.search(r"model name\s*:\s*(.+)", text)
    busy = os.getloadavg()[0]
    sentences = [f"{cores} processors ({model[1] if model else 'unknown'}); the load before measuring was {busy:.1f}."]
    if busy > 0.5:
        sentences.append("The machine had other work when this began: figures are noisier and lower than on an idle one. Take "
                         "ratios of one run, not values of several.")
    if re.search(r"^flags\s*:.*\bhypervisor\b", text, re.M):
        sentences.append("It is a virtual machine itself. What its neighbours do is not seen here and moves figures between "
                         "runs; modes are therefore measured in turn, and compared within a round.")
    if cores <= 4:
        sentences.append("Both sides of a pair and the clients are on this machine: primary and clients share core 0, the "
                         "secondary has core 1 (in the section on 4 vCPUs both have both). On two hosts clients would not "
                         "take the primary's CPU, and an acknowledgement would take a network's round trip instead of a wake-up.")
    sentences += [text for pattern, text in CONSEQUENCES if re.search(pattern, said)]
    return {"doctor": [line.rstrip() for line in said.splitlines()], "sentences": sentences}


def text(note):
    return "\n".join([*note["doctor"], "", *(f"- {each}" for each in note["sentences"])])
