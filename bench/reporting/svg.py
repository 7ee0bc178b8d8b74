"""SVG by hand: a canvas, scales, and the report's plots. All text and lines read on light and dark ground."""

import html
import math

from reporting.modes import COLOURS

# A plot in a file of its own brings its ground along; one on the page lies on the page's.
STYLE = """
.mv{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;font-size:12px}
.mv text{fill:#24292f;paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
.mv .dim{fill:#57606a}.mv .title{font-size:15px;font-weight:600}
.mv .ground{fill:#fff;stroke:#d0d7de}.mv .grid{stroke:#d8dee4}.mv .axis{stroke:#57606a}.mv .miss{fill:#cf222e;font-weight:600}
@media (prefers-color-scheme:dark){.mv text{fill:#e6edf3;stroke:#161b22}
.mv .dim{fill:#9da7b3}.mv .ground{fill:#161b22;stroke:#30363d}
.mv .grid{stroke:#30363d}.mv .axis{stroke:#9da7b3}.mv .miss{fill:#ff7b72}}
"""


def number(value):
    """Three digits, with thin spaces between thousands."""
    if value >= 999.5:
        digits = 10 ** max(0, len(str(int(value))) - 3)
        return f"{round(value / digits) * digits:,.0f}".replace(",", "\u2009")
    return f"{value:.3g}"


def ratio(value):
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


class Canvas:
    def __init__(self, width, height, title, subtitle=""):
        self.width, self.height, self.title, self.parts = width, height, title, []
        self.text(16, 26, title, "title")
        self.text(16, 44, subtitle, "dim")

    def text(self, x, y, words, kind="", anchor="start", turn=None):
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{turned}>'
                          f"{html.escape(words)}</text>")

    def line(self, x1, y1, x2, y2, kind="", colour=None, width=1.0, dash=""):
        look = f' stroke="{colour}"' if colour else f' class="{kind}"'
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width}"{look}{dash}/>')

    def box(self, x, y, width, height, colour, note="", opacity=1.0, round=2):
        told = f"<title>{html.escape(note)}</title>" if note else ""
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" rx="{round}" '
                          f'fill="{colour}" fill-opacity="{opacity}">{told}</rect>')

    def dot(self, x, y, radius, colour, note=""):
        told = f"<title>{html.escape(note)}</title>" if note else ""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">{told}</circle>')

    def legend(self, x, y, entries):
        """Coloured squares with words, in a row."""
        for words, colour in entries:
            self.box(x, y - 9, 11, 11, colour)
            self.text(x + 16, y, words)
            x += 30 + 6.6 * len(words)

    def svg(self, alone=False):
        style = f"<style>{STYLE}</style>" if alone else ""
        ground = (f'<rect class="ground" x=".5" y=".5" width="{self.width - 1}" height="{self.height - 1}" rx="8"/>')
        return (f'<svg class="mv" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img"><title>{html.escape(self.title)}</title>{style}'
                f'{ground}{"".join(self.parts)}</svg>\n')


class Frame:
    """A plot's area with a vertical axis, linear from 0 or logarithmic."""

    def __init__(self, canvas, left, top, right, bottom, low, high, unit, log=False, ticks=5):
        self.canvas, self.left, self.top, self.right, self.bottom, self.log = canvas, left, top, right, bottom, log
        if log:
            self.low, self.high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) - 1e-9)
            self.high = max(self.high, self.low * 10)
            marks = [self.low * 10 ** each for each in range(round(math.log10(self.high / self.low)) + 1)]
        else:
            step = nice(high / ticks)
            self.low, self.high = 0, math.ceil(high / step - 1e-9) * step
            marks = [step * each for each in range(round(self.high / step) + 1)]
        for mark in marks:
            y = self.y(mark)
            canvas.line(left, y, right, y, "grid" if mark != self.low else "axis")
            canvas.text(left - 6, y + 4, number(mark), "dim", "end")
        canvas.text(left - 52, (top + bottom) / 2, unit, "dim", "middle", -90)

    def y(self, value):
        if self.log:
            part = math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        else:
            part = value / self.high
        return self.bottom - part * (self.bottom - self.top)

    def centres(self, count):
        width = (self.right - self.left) / count
        return width, [self.left + width * (index + 0.5) for index in range(count)]


def nice(step):
    scale = 10 ** math.floor(math.log10(step)) if step > 0 else 1
    return next(each * scale for each in (1, 2, 2.5, 5, 10) if each * scale >= step * 0.999)


def bars(title, subtitle, groups, unit, reference=None, target=None, alone=False):
    """Groups of bars: (label, second line, [(mode, value, least, most)]). `reference` is (value, label), drawn across;
    `target` is (group, value, words), drawn over one group."""
    canvas = Canvas(860, 400, title, subtitle)
    most = max([bar[3] for _, _, each in groups for bar in each] + [reference[0] if reference else 0])
    frame = Frame(canvas, 74, 92, 838, 340, 0, most * 1.06, unit)
    shown = [mode for mode in COLOURS if any(bar[0] == mode for _, _, each in groups for bar in each)]
    canvas.legend(74, 70, [(mode, COLOURS[mode]) for mode in shown])
    width, centres = frame.centres(len(groups))
    labels = []  # over all lines
    for (label, below, each), centre in zip(groups, centres):
        slot = min(56, width * 0.8 / max(1, len(each)))
        for index, (mode, value, least, greatest) in enumerate(each):
            x = centre + (index - len(each) / 2) * slot
            top = frame.y(value)
            canvas.box(x + 3, top, slot - 6, frame.bottom - top, COLOURS[mode], f"{label}, {mode}: {value:.3f}")
            if greatest > least:
                canvas.line(x + slot / 2, frame.y(least), x + slot / 2, frame.y(greatest), "axis", width=1.5)
            labels.append((x + slot / 2, min(top, frame.y(greatest)) - 5, ratio(value)))
        canvas.text(centre, frame.bottom + 19, label, anchor="middle")
        canvas.text(centre, frame.bottom + 36, below, "dim", "middle")
    if reference:
        y = frame.y(reference[0])
        canvas.line(frame.left, y, frame.right, y, colour=COLOURS["none"], width=2)
        canvas.text(frame.right, y - 5, reference[1], "dim", "end")
    if target:
        y, centre = frame.y(target[1]), centres[target[0]]
        canvas.line(centre - width * 0.46, y, centre + width * 0.46, y, colour=COLOURS["colo++"], width=1.5, dash="5 3")
        canvas.line(674, 66, 700, 66, colour=COLOURS["colo++"], width=1.5, dash="5 3")
        canvas.text(706, 70, target[2], "dim")
    for x, y, words in labels:
        canvas.text(x, y, words, anchor="middle")
    return canvas.svg(alone)


def columns(title, subtitle, each, unit, colours, width=430):
    """One bar a name: (name, value, least, most)."""
    canvas = Canvas(width, 320, title, subtitle)
    frame = Frame(canvas, 74, 70, width - 20, 280, 0, max(most for *_, most in each) * 1.08, unit, ticks=4)
    slot, centres = frame.centres(len(each))
    for (name, value, least, most), centre, colour in zip(each, centres, colours):
        canvas.box(centre - slot * 0.32, frame.y(value), slot * 0.64, frame.bottom - frame.y(value), colour)
        if most > least:
            canvas.line(centre, frame.y(least), centre, frame.y(most), "axis", width=1.5)
        canvas.text(centre, frame.y(most) - 6, number(value), anchor="middle")
        canvas.text(centre, frame.bottom + 19, name, anchor="middle")
    return canvas.svg()


def quantiles(title, subtitle, groups, unit, names, width=860):
    """Groups of [(mode, rising values or None, why not)]: a bar from the first to the second, a thin line to the third."""
    canvas = Canvas(width, 380, title, subtitle)
    values = [value for _, marks in groups for _, each, _ in marks for value in each or () if value > 0]
    if not values:
        canvas.text(16, 90, "nothing was measured", "dim")
        return canvas.svg()
    frame = Frame(canvas, 74, 92, width - 22, 330, min(values), max(values), unit, log=True)
    shown = [mode for mode in COLOURS if any(mark[0] == mode for _, marks in groups for mark in marks)]
    canvas.legend(74, 70, [(mode, COLOURS[mode]) for mode in shown])
    slots, centres = frame.centres(len(groups))
    for (label, marks), centre in zip(groups, centres):
        slot = min(58, slots * 0.86 / len(marks))
        for index, (mode, each, why) in enumerate(marks):
            x, colour = centre + (index - len(marks) / 2 + 0.5) * slot, COLOURS[mode]
            if not each:
                canvas.text(x + 4, frame.bottom - 8, f"{mode}: {why}", "dim", turn=-90)
                continue
            low, middle, high = (frame.y(value) for value in (each[0], each[1], each[-1]))
            told = f"{label}, {mode}: " + ", ".join(f"{name} {value:.3g}" for name, value in zip(names, each)) + f" {unit}"
            canvas.line(x, low, x, high, colour=colour, width=2)
            canvas.line(x - 6, high, x + 6, high, colour=colour, width=2)
            if len(each) == 3:
                canvas.box(x - 6, middle, 12, low - middle, colour, told)
            canvas.dot(x, low, 6, colour, told)
            canvas.text(x, high - 6, number(each[1]), "", "middle")
        canvas.text(centre, frame.bottom + 19, label, anchor="middle")
    key = ("dot: {}; bar to {}; line to {}" if len(names) == 3 else "dot: {}; line to {}").format(*names)
    canvas.text(width - 22, frame.bottom + 39, f"{key}; numbers: {names[1]}", "dim", "end")
    return canvas.svg()
