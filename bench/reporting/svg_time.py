"""The report's other plots: over time, shares, how something is spread, and two things beside each other."""

import math

from reporting.modes import COLOURS
from reporting.svg import Canvas, Frame, number


def rates(title, subtitle, lanes, colours, unit):
    """A lane for each mode: stacked bars of (start, end, {cause: a second})."""
    top, height = 92, 120
    canvas = Canvas(860, top + len(lanes) * (height + 34) + 10, title, subtitle)
    seen = [cause for cause in colours if any(rate[cause] for _, bins in lanes for *_, rate in bins)]
    canvas.legend(74, 70, [(cause, colours[cause]) for cause in seen])
    last = max(bins[-1][1] for _, bins in lanes if bins)
    for index, (mode, bins) in enumerate(lanes):
        y = top + index * (height + 34)
        most = max([sum(rate.values()) for *_, rate in bins] + [1])
        frame = Frame(canvas, 74, y, 838, y + height - 14, 0, most, unit if index == len(lanes) // 2 else "", ticks=3)
        canvas.text(frame.right, y - 6, mode, "title", "end")

        def x(time):
            return frame.left + time / last * (frame.right - frame.left)
        for start, end, rate in bins:
            base = 0
            for cause in seen:
                upper, lower = frame.y(base + rate[cause]), frame.y(base)
                if rate[cause]:
                    canvas.box(x(start) + 0.5, upper, x(end) - x(start) - 1, lower - upper, colours[cause],
                               f"{mode}, {start:.1f} s: {rate[cause]:.1f}/s {cause}", round=0)
                base += rate[cause]
        for second in range(0, int(last) + 1, 1 if last < 12 else 2):
            canvas.text(x(second), frame.bottom + 15, f"{second} s", "dim", "middle" if x(second) < 820 else "end")
    return canvas.svg()


def shares(title, subtitle, lanes, width=520):
    """A bar for each mode, of parts: (mode, [(colour, amount, label)])."""
    canvas = Canvas(width, 110 + len(lanes) * 52 + len(lanes[0][1]) * 22, title, subtitle)
    for index, (mode, parts) in enumerate(lanes):
        total = sum(amount for _, amount, _ in parts) or 1
        y, x = 80 + index * 52, 80
        canvas.text(70, y + 20, mode, anchor="end")
        for colour, amount, label in parts:
            size = amount / total * (width - 110)
            canvas.box(x, y, size, 30, colour, f"{mode}: {amount} frames, {label}", round=0)
            if size > 44:
                canvas.parts.append(f'<text x="{x + size / 2:.1f}" y="{y + 20}" text-anchor="middle" '
                                    f'style="fill:#111;stroke:none">{amount / total:.0%}</text>')
            x += size
    for index, (colour, _, label) in enumerate(lanes[0][1]):
        y = 80 + len(lanes) * 52 + 20 + index * 22
        canvas.box(80, y - 10, 11, 11, colour)
        canvas.text(98, y, label)
    return canvas.svg()


def spread(title, subtitle, curves, unit, width=860):
    """What share of all is at most so much: a curve for each mode, of values at even steps from 0 to 100 %; log scale."""
    canvas = Canvas(width, 380, title, subtitle)
    values = [value for _, each in curves for value in each if value > 0]
    if not values:
        canvas.text(16, 90, "nothing was measured", "dim")
        return canvas.svg()
    frame = Frame(canvas, 74, 92, width - 22, 330, 0, 100, "% of all", ticks=4)
    canvas.legend(74, 70, [(mode, COLOURS[mode]) for mode, _ in curves])
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)

    def x(value):
        part = (math.log10(max(value, min(values))) - low) / (high - low)
        return frame.left + part * (frame.right - frame.left)
    for power in range(low, high + 1):
        canvas.line(x(10 ** power), frame.top, x(10 ** power), frame.bottom, "grid")
        canvas.text(x(10 ** power), frame.bottom + 17, f"{number(10 ** power)} {unit}", "dim",
                    "end" if power == high else "middle")
    for mode, each in curves:
        step = 100 / (len(each) - 1)
        for index, (before, after) in enumerate(zip(each, each[1:])):
            canvas.line(x(before), frame.y(index * step), x(after), frame.y((index + 1) * step), colour=COLOURS[mode], width=2)
        for index, value in enumerate(each):
            canvas.dot(x(value), frame.y(index * step), 3, COLOURS[mode], f"{mode}: {index * step:.0f} % within {value:.3g} {unit}")
    return canvas.svg()


def timeline(title, subtitle, lanes, start, step):
    """Bars of counts a bin, from `start` milliseconds in bins of `step`: (mode, counts, the gap, the gaps of all)."""
    top, height = 88, 130
    canvas = Canvas(860, top + len(lanes) * (height + 40) + 12, title, subtitle)
    end = round(start + step * len(lanes[0][1]))

    for index, (mode, counts, gap, gaps) in enumerate(lanes):
        y = top + index * (height + 40)
        unit = "replies per 10 ms" if index == len(lanes) // 2 else ""
        frame = Frame(canvas, 74, y, 838, y + height - 26, 0, max(max(counts), 1), unit, ticks=3)
        scale = (frame.right - frame.left) / (end - start)

        def x(time):
            return frame.left + (time - start) * scale
        canvas.box(x(0), frame.top, gap * scale, frame.bottom - frame.top, "#cf222e", opacity=0.12, round=0)
        for place, count in enumerate(counts):
            if count:
                canvas.box(x(start + place * step) + 0.5, frame.y(count), step * scale - 1, frame.bottom - frame.y(count),
                           COLOURS[mode], f"{start + place * step:.0f} ms: {count} replies", round=0)
        canvas.line(x(0), frame.top - 8, x(0), frame.bottom, colour="#cf222e", width=1.5)
        canvas.text(x(0) - 5, frame.top - 8, "kill -9", "miss", "end")
        canvas.text(x(0) + 5, frame.top - 8, f"first reply of the survivor after {gap:.0f} ms", "miss")
        canvas.text(frame.right, y - 8, mode, "title", "end")
        for each in gaps:
            canvas.dot(min(x(each), frame.right), frame.bottom + 7, 3, COLOURS[mode], f"{each:.0f} ms")
        for time in range(int(start), int(end) + 1, 100):
            canvas.text(x(time), frame.bottom + 26, f"{time} ms", "dim", "end" if time == end else "middle")
    return canvas.svg()


def beside(title, subtitle, rows):
    """Two bars a row, each row to its own scale: (label, unit, ours, theirs)."""
    canvas = Canvas(860, 92 + 52 * len(rows), title, subtitle)
    canvas.legend(250, 70, [("minivmm", COLOURS["colo"]), ("QEMU", COLOURS["QEMU"])])
    for index, (label, unit, ours, theirs) in enumerate(rows):
        y = 84 + index * 52
        canvas.text(240, y + 22, label, anchor="end")
        longest = max(ours, theirs) or 1
        for value, colour, offset in ((ours, COLOURS["colo"], 0), (theirs, COLOURS["QEMU"], 18)):
            size = max(1.5, value / longest * 480)
            canvas.box(250, y + offset, size, 15, colour, f"{label}: {value:.3g} {unit}")
            canvas.text(250 + size + 6, y + offset + 12, f"{number(value)} {unit}")
    return canvas.svg()
