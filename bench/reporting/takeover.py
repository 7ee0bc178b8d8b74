"""SIGKILL of the primary under load, seen by a client."""

import network
from measure import Row, median
from reporting import modes, svg_time
from topics import failover

NAME = "failover"
TITLE = "Failover"
TEXT = """A client asks once a millisecond on one connection, whatever has been answered, and every reply must be the right
one. Then the primary gets SIGKILL, and the secondary goes on with the same connection. <i>4→1</i>: a guest with four CPUs, of
which the secondary's uses one until it takes over, and three fight for a lock."""
SHRUNK = "colo++ 4→1"
BEFORE, AFTER, BIN = -0.3, 0.7, 0.01


def measure(options, tell):
    rounds = 3 if options.quick else 15
    results = {mode: {"gaps": [], "replies": []} for mode in (*modes.MODES[1:], SHRUNK)}
    with network.Bridge() as space:
        for turn in range(rounds):
            for mode, result in results.items():
                tell(f"{mode}, kill {turn + 1} of {rounds}")
                start, asked, times = failover.replies(options, space, mode.split()[0], shrunk=mode == SHRUNK)
                result["gaps"].append(failover.gap(start, asked, times))
                result["replies"].append([round(each - start, 4) for each in times if BEFORE <= each - start < AFTER])
    return results


def figures(data):
    rows = []
    for mode, result in data.items():
        first, silence, _ = (sorted(each) for each in zip(*result["gaps"]))
        count = len(first)
        rows.append(Row(f"failover_{modes.name(mode)}_p50_ms", median(first), "ms", f"SIGKILL to the survivor's first reply; "
                        f"the client's longest silence {median(silence):.0f} ms", count))
        rows.append(Row(f"failover_{modes.name(mode)}_longest_ms", first[-1], "ms", "", count, "<= 200"))
    return rows


def typical(result):
    """The kill whose gap is the median."""
    gaps = [gap[0] for gap in result["gaps"]]
    index = gaps.index(sorted(gaps)[len(gaps) // 2])
    return gaps[index], result["replies"][index]


def plots(data):
    lanes = []
    for mode, result in data.items():
        gap, times = typical(result)
        counts = [0] * round((AFTER - BEFORE) / BIN)
        for each in times:
            counts[min(len(counts) - 1, int((each - BEFORE) / BIN))] += 1
        lanes.append((mode, counts, gap, [each[0] for each in result["gaps"]]))
    return [(svg_time.timeline("The client's replies around the kill", "of each mode the kill with the median gap", lanes,
                               BEFORE * 1000, BIN * 1000),
             "Dots under each lane: the first reply of the survivor in every kill that was measured. A frame that dies with the "
             "primary comes again when its client's retransmission timer ends, 200 ms in Linux at the least. Remus answers in "
             "bursts, one each checkpoint.")]
