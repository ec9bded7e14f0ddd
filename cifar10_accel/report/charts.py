"""Charts as inline SVG: lines, bars and reliability diagrams.

Colours are classes of the page's style sheet, so that they follow the light and the dark theme; values are in
hover titles, too. Every chart is a <figure> that scales with the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from cifar10_accel.report.svg import (
    Format,
    Kind,
    Scale,
    fit_scale,
    format_number,
    format_percent,
    format_short_percent,
    tag,
)

if TYPE_CHECKING:
    from cifar10_accel.report.calibration import Reliability  # imports SciPy, which most charts do not need

WIDTH, HEIGHT = 560.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 14.0, 34.0, 50.0  # margins for the labels of the axes
HISTOGRAM_HEIGHT = 90.0  # under a reliability diagram
MAX_ROWS = 20  # of a table that is shown whole
MAX_POINTS = 400  # of a line; more are averaged
MAX_DOTS = 40  # of a line, with a hover title each


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart; nan makes a gap. `style` is a class of the style sheet: s1 to s6, faint, dashed, best."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    trial: int | None = None  # highlighted together with everything else of this trial

    @property
    def is_constant(self) -> bool:
        """True if all finite values, at least two, are the same."""
        finite = [value for value in self.y if math.isfinite(value)]
        return len(finite) > 1 and min(finite) == max(finite)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line across a chart, where something changes; the text is to its left or right."""

    x: float
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Label of an axis, with the unit, and the format of its values."""

    label: str
    format: Format = format_number
    kind: Kind = "linear"
    start: float | None = None  # a value that the axis includes

    @property
    def tick_format(self) -> Format:
        """Format of the ticks, which is shorter than that of values."""
        return format_short_percent if self.format is format_percent else self.format


def line_chart(
    lines: Sequence[Line], *, title: str, x: Axis, y: Axis, legend: bool = True, marks: Sequence[Mark] = ()
) -> Markup:
    """Return a chart of lines on common axes, with a legend if there are several."""
    lines = [_thin(line) for line in lines]
    included = [] if x.start is None else [x.start]
    values = [*included, *(v for line in lines for v in line.x)]
    across = fit_scale(values, LEFT, WIDTH - RIGHT, kind=x.kind, exact=True)
    up = fit_scale([v for line in lines for v in line.y], HEIGHT - BOTTOM, TOP, kind=y.kind)
    drawn = [_mark(mark, across, up) for mark in marks if across.low < mark.x < across.high]
    drawn += [_line(line, across, up, x, y) for line in lines]
    names = [tag("li", line.name, class_=f"key {line.style}") for line in lines] if legend and len(lines) > 1 else []
    keys = tag("ul", *names, class_="legend") if names else Markup("")
    return figure(title, keys + svg(f"{y.label} by {x.label}", axes(across, up, x, y), *drawn))


def bar_chart(names: Sequence[str], shares: Sequence[float], notes: Sequence[str], *, title: str) -> Markup:
    """Return a table with a horizontal bar for each name: a share, 0..1, and a note; nan has no bar.

    The longest bar has the full width. A table with many rows can be searched, and scrolls within the page.
    """
    longest = max((share for share in shares if not math.isnan(share)), default=0.0) or 1.0
    rows = [
        tag("th", name, scope="row")
        + tag("td", format_percent(share), class_="number")
        + tag("td", "" if math.isnan(share) else tag("span", style=f"width:{share / longest:.2%}"), class_="bar")
        + tag("td", note, class_="muted")
        for name, share, note in zip(names, shares, notes, strict=True)
    ]
    bars = tag("table", *(tag("tr", row) for row in rows), class_="bars")
    return figure(title, searchable(bars, len(rows)))


def searchable(rows: Markup, count: int) -> Markup:
    """Return a table or list as it is or, with many rows, with a search field above it."""
    if count <= MAX_ROWS:
        return rows
    field = tag("input", type="search", placeholder=f"search {count:,} rows", aria_label="search", data_search="rows")
    return tag("div", field, tag("div", rows, class_="tall"), class_="searchable")


def reliability_chart(bins: "Reliability", *, title: str) -> Markup:
    """Return a reliability diagram: accuracy against confidence, a bar for each bin with images.

    On the dashed diagonal the accuracy equals the confidence. Below it, a histogram of the images over the bins.
    """
    x, y = Axis(label="confidence", format=format_percent), Axis(label="accuracy", format=format_percent)
    across, up = Scale("linear", 0, 1, LEFT, WIDTH - RIGHT), Scale("linear", 0, 1, HEIGHT - BOTTOM, TOP)
    drawn = [tag("path", d=f"M{across(0):.1f} {up(0):.1f}L{across(1):.1f} {up(1):.1f}", class_="line dashed faint")]
    drawn += [_reliability_bin(bins, k, across, up) for k, count in enumerate(bins.counts) if count]
    drawn += _histogram(bins, across)
    return figure(title, svg(title, axes(across, up, x, y), *drawn, height=HEIGHT + HISTOGRAM_HEIGHT))


def axes(across: Scale, up: Scale, x: Axis, y: Axis, *, height: float = HEIGHT) -> Markup:
    """Return the grid lines with their values, and the axes' labels."""
    marks = [
        tag("path", d=f"M{across.start:.1f} {up(v):.1f}H{across.end:.1f}", class_="grid")
        + tag("text", up.label(v, y.tick_format), x=across.start - 8, y=up(v) + 4, class_="tick end")
        for v in up.ticks()
    ]
    marks += [
        tag("path", d=f"M{across(v):.1f} {up.start:.1f}v5", class_="mark")
        + tag("text", across.label(v, x.tick_format), x=across(v), y=up.start + 20, class_="tick middle")
        for v in across.ticks()
    ]
    marks += [
        tag("path", d=f"M{across.start:.1f} {up.start:.1f}H{across.end:.1f}", class_="axis"),
        tag("text", x.label, x=across.end, y=height - 8, class_="label end"),
        tag("text", y.label, x=0, y=16, class_="label"),
    ]
    return tag("g", *marks)


def svg(description: str, *content: Markup, width: float = WIDTH, height: float = HEIGHT, **more: str) -> Markup:
    """Return an SVG element that scales with the page; the description is for screen readers."""
    return tag(
        "svg",
        tag("desc", description),
        *content,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=description,
        **more,
    )


def figure(title: str, content: Markup, note: str = "") -> Markup:
    """Return a chart under its title, if it has one, and above its note."""
    above = tag("figcaption", title) if title else Markup("")
    below = tag("p", note, class_="note") if note else Markup("")
    return tag("figure", above, content, below, class_="chart")


def _mark(mark: Mark, across: Scale, up: Scale) -> Markup:
    x = across(mark.x)
    texts = [
        tag("text", text, x=x + offset, y=up.end - 6, class_=f"tick {anchor}".strip())
        for text, offset, anchor in ((mark.before, -6.0, "end"), (mark.after, 6.0, ""))
    ]
    return tag("g", tag("path", d=f"M{x:.1f} {up.start:.1f}V{up.end - 18:.1f}", class_="change"), *texts)


def _line(line: Line, across: Scale, up: Scale, x: Axis, y: Axis) -> Markup:
    points = [(across(a), up(b)) for a, b in zip(line.x, line.y, strict=True)]
    few = len(points) <= MAX_DOTS
    stride = max(1, math.ceil(len(points) / MAX_DOTS))
    dots = [
        tag(
            "circle",
            tag("title", f"{line.name}: {y.format(line.y[k])} at {x.label} {format_number(line.x[k])}"),
            cx=points[k][0],
            cy=points[k][1],
            r=3 if few else 8,
            class_="dot" if few else "hit",
        )
        for k in range(0, len(points), stride)
        if not math.isnan(points[k][1])
    ]
    path = tag("path", tag("title", line.name), d=_path(points), class_="line")
    return tag("g", path, *dots, class_=f"series {line.style}", data_trial=line.trial)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return SVG path data that starts anew after each gap."""
    commands, pen = [], "M"
    for a, b in points:
        if math.isnan(a) or math.isnan(b):
            pen = "M"
        else:
            commands.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
    return "".join(commands)


def _thin(line: Line) -> Line:
    """Return the line with neighbours averaged to at most MAX_POINTS; an average over a nan is nan."""
    group = math.ceil(len(line.x) / MAX_POINTS)
    if group <= 1:
        return line
    groups = [slice(k, k + group) for k in range(0, len(line.x), group)]
    x, y = ([sum(values[g]) / len(values[g]) for g in groups] for values in (line.x, line.y))
    return replace(line, x=x, y=y)


def _histogram(bins: "Reliability", across: Scale) -> list[Markup]:
    """Return a bar for the number of images in each bin, below the axis of the diagram."""
    bottom, most = HEIGHT + HISTOGRAM_HEIGHT - 12, max(int(bins.counts.max(initial=0)), 1)
    up = Scale("linear", 0, most, bottom, HEIGHT + 10)
    bars = [
        tag(
            "rect",
            tag("title", f"{count:,} images"),
            x=across(float(low)) + 1,
            width=across(float(high)) - across(float(low)) - 2,
            y=up(count),
            height=max(bottom - up(count), 0.5),
            class_="counts",
        )
        for count, low, high in zip(bins.counts.tolist(), bins.edges[:-1], bins.edges[1:], strict=True)
        if count
    ]
    frame = tag("path", d=f"M{across.start:.1f} {bottom:.1f}H{across.end:.1f}", class_="axis")
    labels = [
        tag("text", text, x=across.start - 8, y=y + 4, class_="tick end")
        for text, y in ((f"{most:,}", up(most)), ("0", bottom))
    ]
    return [*bars, frame, *labels, tag("text", "images", x=0, y=HEIGHT - 8, class_="label")]


def _reliability_bin(bins: "Reliability", k: int, across: Scale, up: Scale) -> Markup:
    """Return the bar of the accuracy, and the gap between accuracy and confidence."""
    confidence, accuracy = float(bins.confidence[k]), float(bins.accuracy[k])
    left, right = across(float(bins.edges[k])), across(float(bins.edges[k + 1]))
    place = {"x": left + 1, "width": right - left - 2}
    top, expected = up(accuracy), up(confidence)
    counted = f"{bins.counts[k]:,} images"
    title = f"{counted}, confidence {format_percent(confidence)}, accuracy {format_percent(accuracy)}"
    return tag(
        "g",
        tag("title", title),
        tag("rect", **place, y=top, height=max(up(0) - top, 0.5), class_="bin"),
        tag("rect", **place, y=min(top, expected), height=abs(top - expected), class_="gap"),
    )
