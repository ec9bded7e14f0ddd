"""Charts as inline SVG: lines, bars, and how sure a net was against how right.

Colours are classes of the page's style sheet, so that they follow light and dark; numbers are said in
hover titles too. Every chart is a <figure> that scales with the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cifar10_accel.pages.svg import Format, Kind, Scale, fit, number, percent, short_percent, tag

WIDTH, HEIGHT = 560.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 14.0, 34.0, 50.0  # room for what is written on the axes
MOST_POINTS = 400  # of a line; more are averaged, which the eye would do anyway
MOST_DOTS = 40  # with a hover title each


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart; nan makes a gap. `style` is a class of the style sheet: s1 to s6, faint, dashed, best."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    trial: int | None = None  # highlighted together with everything else of this trial


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis says: its label with the unit, and how values are written."""

    label: str
    written: Format = number
    kind: Kind = "linear"

    @property
    def tick(self) -> Format:
        """How its ticks are written: shorter than values."""
        return short_percent if self.written is percent else self.written


def line_chart(lines: Sequence[Line], *, title: str, x: Axis, y: Axis, legend: bool = True) -> Markup:
    """Lines on common axes, under their title."""
    lines = [_thinned(line) for line in lines]
    across = fit([v for line in lines for v in line.x], LEFT, WIDTH - RIGHT, kind=x.kind, room=0)
    up = fit([v for line in lines for v in line.y], HEIGHT - BOTTOM, TOP, kind=y.kind)
    drawn = [_line(line, across, up, x, y) for line in lines]
    names = [tag("li", line.name, class_=f"key {line.style}") for line in lines] if legend and len(lines) > 1 else []
    keys = tag("ul", *names, class_="legend") if names else Markup("")
    return figure(title, keys + svg(f"{y.label} by {x.label}", axes(across, up, x, y), *drawn))


def bars(names: Sequence[str], shares: Sequence[float], notes: Sequence[str], *, title: str) -> Markup:
    """A horizontal bar for each name, of a share 0..1 on an axis from 0; nan has no bar."""
    rows = [
        tag("th", name, scope="row") + tag("td", percent(share), class_="number") + tag("td", _bar(share), class_="bar")
        + tag("td", note, class_="muted")
        for name, share, note in zip(names, shares, notes, strict=True)
    ]  # fmt: skip
    return figure(title, tag("table", *(tag("tr", row) for row in rows), class_="bars"))


def reliability(edges: Sequence[float], counts: Sequence[int], confidence: Sequence[float], accuracy: Sequence[float],
                *, title: str) -> Markup:  # fmt: skip
    """Accuracy against confidence, a bar for each bin that has images; on the diagonal a net is as right as it says.

    edges: B + 1 from 0 to 1; the others B values, nan in empty bins.
    """
    x, y = Axis(label="confidence", written=percent), Axis(label="accuracy", written=percent)
    across, up = Scale("linear", 0, 1, LEFT, WIDTH - RIGHT), Scale("linear", 0, 1, HEIGHT - BOTTOM, TOP)
    drawn = [tag("path", d=f"M{across(0):.1f} {up(0):.1f}L{across(1):.1f} {up(1):.1f}", class_="line dashed faint")]
    for k, count in enumerate(counts):
        if count:
            said = f"{count:,} images, confidence {percent(confidence[k])}, accuracy {percent(accuracy[k])}"
            drawn.append(_reliability_bin(across, up, edges[k], edges[k + 1], confidence[k], accuracy[k], said))
    return figure(title, svg(title, axes(across, up, x, y), *drawn))


def axes(across: Scale, up: Scale, x: Axis, y: Axis, *, height: float = HEIGHT) -> Markup:
    """Grid lines with their values, and the axes' labels."""
    marks = [
        tag("path", d=f"M{across.start:.1f} {up(v):.1f}H{across.end:.1f}", class_="grid")
        + tag("text", up.label(v, y.tick), x=across.start - 8, y=up(v) + 4, class_="tick end")
        for v in up.ticks()
    ]
    marks += [
        tag("path", d=f"M{across(v):.1f} {up.start:.1f}v5", class_="mark")
        + tag("text", across.label(v, x.tick), x=across(v), y=up.start + 20, class_="tick middle")
        for v in across.ticks()
    ]
    marks += [
        tag("path", d=f"M{across.start:.1f} {up.start:.1f}H{across.end:.1f}", class_="axis"),
        tag("text", x.label, x=across.end, y=height - 8, class_="label end"),
        tag("text", y.label, x=0, y=16, class_="label"),
    ]
    return tag("g", *marks)


def svg(description: str, *content: Markup, width: float = WIDTH, height: float = HEIGHT, **more: str) -> Markup:
    """A picture that scales; the description is for those who cannot see it."""
    return tag(
        "svg", tag("desc", description), *content, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img",
        aria_label=description, **more,
    )  # fmt: skip


def figure(title: str, content: Markup, note: str = "") -> Markup:
    """A chart under its title, if it has one, and a note below it."""
    above = tag("figcaption", title) if title else Markup("")
    below = tag("p", note, class_="note") if note else Markup("")
    return tag("figure", above, content, below, class_="chart")


def _line(line: Line, across: Scale, up: Scale, x: Axis, y: Axis) -> Markup:
    points = [(across(a), up(b)) for a, b in zip(line.x, line.y, strict=True)]
    few = len(points) <= MOST_DOTS
    stride = max(1, math.ceil(len(points) / MOST_DOTS))
    dots = [
        tag(
            "circle", tag("title", f"{line.name}: {y.written(line.y[k])} at {x.label} {number(line.x[k])}"),
            cx=points[k][0], cy=points[k][1], r=3 if few else 8, class_="dot" if few else "hit",
        )
        for k in range(0, len(points), stride)
        if not math.isnan(points[k][1])
    ]  # fmt: skip
    path = tag("path", tag("title", line.name), d=_path(points), class_="line")
    return tag("g", path, *dots, class_=f"series {line.style}", data_trial=line.trial)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """SVG path data: a new piece after each gap."""
    written, pen = [], "M"
    for a, b in points:
        if math.isnan(a) or math.isnan(b):
            pen = "M"
        else:
            written.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
    return "".join(written)


def _thinned(line: Line) -> Line:
    """The line with neighbours averaged until there are at most MOST_POINTS; a nan among them stays one."""
    group = math.ceil(len(line.x) / MOST_POINTS)
    if group <= 1:
        return line
    pieces = [slice(k, k + group) for k in range(0, len(line.x), group)]
    x, y = ([sum(values[p]) / len(values[p]) for p in pieces] for values in (line.x, line.y))
    return Line(name=line.name, x=x, y=y, style=line.style, trial=line.trial)


def _bar(share: float) -> Markup:
    if math.isnan(share):
        return Markup("")
    return tag("span", style=f"width:{share:.2%}")


def _reliability_bin(
    across: Scale, up: Scale, low: float, high: float, confidence: float, accuracy: float, said: str
) -> Markup:
    """The bar of the accuracy, and the gap to what was claimed."""
    left, width = across(low) + 1, across(high) - across(low) - 2
    top, claimed = up(accuracy), up(confidence)
    return tag(
        "g", tag("title", said),
        tag("rect", x=left, y=top, width=width, height=max(up(0) - top, 0.5), class_="bin"),
        tag("rect", x=left, y=min(top, claimed), width=width, height=abs(top - claimed), class_="gap"),
    )  # fmt: skip
