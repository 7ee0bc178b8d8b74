"""Rows, medians and pairs."""

import os
import statistics
import time
from dataclasses import dataclass

median = statistics.median


@dataclass
class Options:
    quick: bool
    minivmm: str
    programs: str
    root: str

    @property
    def rounds(self):
        return 3 if self.quick else 7

    @property
    def lab(self):
        return f"{self.root}/guests/lab/out/lab.elf"


@dataclass
class Row:
    name: str
    value: float | None
    unit: str = "×"
    # What the value was divided by or measured beside, in words.
    against: str = ""
    runs: int = 0
    # ">= 1.5" or "<= 15"
    target: str | None = None

    @property
    def met(self):
        if self.target is None or self.value is None:
            return True
        sign, limit = self.target.split()
        return self.value >= float(limit) if sign == ">=" else self.value <= float(limit)

    def json(self):
        value = None if self.value is None else float(f"{self.value:.4g}")
        return {"name": self.name, "value": value, "unit": self.unit, "against": self.against, "runs": self.runs}


class Unavailable(Exception):
    """A topic that can't be measured here; the text says why."""

    def row(self, name):
        return Row(name, None, "", str(self))


def quartiles(values):
    """Between them lies the middle half."""
    return statistics.quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else [values[0]] * 2


def pairs(rounds, *measurements):
    """Runs the measurements in turn, `rounds` times; a list of results for each."""
    results = [[] for _ in measurements]
    for _ in range(rounds):
        for result, measurement in zip(results, measurements):
            result.append(measurement())
    return results


def ratio(ours, theirs):
    """The median over pairs of ours ÷ theirs."""
    return median(a / b for a, b in zip(ours, theirs))


def taken():
    """Seconds of this machine's CPUs that its own host has given to others ("steal"), until now."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def noting(measurement):
    """A result, with `taken`: the share of the machine's CPU time that its host gave to others meanwhile."""
    begin, before = time.monotonic(), taken()
    result = measurement()
    return {**result, "taken": (taken() - before) / (time.monotonic() - begin) / os.cpu_count()}
