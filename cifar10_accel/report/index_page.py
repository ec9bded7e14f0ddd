"""index.html: all runs of a folder, their accuracy curves on one chart, and links to their reports."""

import math
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from cifar10_accel.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, axes, figure, svg
from cifar10_accel.report.page import write_page
from cifar10_accel.report.svg import Scale, fit_scale, format_percent, tag
from cifar10_accel.runs.listing import Curve, ListedRun, Listing

NUM_COLOURS = 6  # styles s1 to s6 of the style sheet
MAX_POINTS = 200  # of a curve
MAX_ALL_POINTS = 30_000  # of all curves, so that the page of a thousand runs stays small
LEAST_POINTS = 8


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A run in the table."""

    run: ListedRun
    style: str  # of its curve; a few runs have colours of their own, many only when they are ticked
    link: str | None  # relative address of its report
    command_path: str  # as it is typed in a shell

    @property
    def name(self) -> str:
        """The name; bytes that are no UTF-8 are replaced."""
        return printable(self.run.name)


def write_index_page(path: Path, listing: Listing, runs: Sequence[ListedRun], *, curves: Sequence[Curve]) -> None:
    """Write the page of many runs.

    Args:
        path: File to write; links are relative to the listed folder, where it should be.
        listing: The folder, and the pages in it.
        runs: The runs to show, in the order of the table.
        curves: The accuracy of each of them over the epochs; without points for a run without metrics.

    Raises:
        OSError: The file cannot be written.
    """
    few, least = len(runs) <= NUM_COLOURS, _least_shown(curves)
    rows = [
        _Row(
            run=run,
            style=f"s{number + 1}" if few else "faint",
            link=_address(f"{_folder_of(run)}report.html") if run.has_report else None,
            command_path=shlex.quote(printable(str(run.path))),
        )
        for number, run in enumerate(runs)
    ]
    write_page(
        path,
        "index",
        folder=printable(str(listing.folder)),
        rows=rows,
        few=few,
        counts=Counter(run.state for run in runs),
        seconds=sum(run.seconds or 0.0 for run in runs),
        datasets=Counter(str(run.value("dataset")) for run in runs),
        chart=_chart(rows, curves, least=least),
        is_cut=least > 0,
        pages=[(page.kind, printable(page.name), _address(page.name)) for page in listing.pages],
        num_unreadable=len(listing.unreadable),
        synthetic=any(run.value("dataset") == "synthetic" for run in runs),
    )


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: bytes of a file name that are no UTF-8 become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _folder_of(run: ListedRun) -> str:
    return "" if run.is_listed_folder else f"{run.name}/"


def _address(name: str) -> str:
    """Return a relative address; `./` keeps a colon in the first name from looking like a scheme."""
    return "./" + quote(os.fsencode(name))


def _chart(rows: Sequence[_Row], curves: Sequence[Curve], *, least: float) -> Markup | None:
    """Return the chart of all curves, without the part below the accuracy `least`."""
    points = list(chain.from_iterable(curve.points for curve in curves))
    if not points:
        return None
    across = fit_scale([epoch for epoch, _ in points], LEFT, WIDTH - RIGHT, exact=True)
    up = fit_scale([max(accuracy, least) for _, accuracy in points], HEIGHT - BOTTOM, TOP)
    most = max(LEAST_POINTS, min(MAX_POINTS, MAX_ALL_POINTS // len(rows)))
    drawn = [
        _draw(number, row, _thin(curve, most), across, up)
        for number, (row, curve) in enumerate(zip(rows, curves, strict=True))
        if curve.points
    ]
    area = tag("rect", x=LEFT - 2, y=0, width=WIDTH - LEFT, height=HEIGHT - BOTTOM)
    clip = tag("clipPath", area, id="plot-area")
    x, y = Axis(label="epoch"), Axis(label="accuracy", format=format_percent)
    lines = tag("g", *drawn, clip_path="url(#plot-area)")
    return figure("", svg("accuracy by epoch", clip, axes(across, up, x, y), lines))


def _least_shown(curves: Sequence[Curve]) -> float:
    """Return the accuracy that the chart begins at; 0, which cuts nothing, unless a few low values stretch the axis."""
    accuracies = sorted(accuracy for curve in curves for _, accuracy in curve.points)
    if not accuracies:
        return 0.0
    low = accuracies[len(accuracies) // 8]
    is_stretched = low - accuracies[0] > (accuracies[-1] - accuracies[0]) / 3
    return low if is_stretched else 0.0


def _draw(number: int, row: _Row, curve: Curve, across: Scale, up: Scale) -> Markup:
    """Return a curve with a wider transparent one above it, which is easier to point at; a single point is a dot."""
    places = [(across(epoch), up(accuracy)) for epoch, accuracy in curve.points]
    epoch, accuracy = curve.points[-1]
    place = "on the hold-out" if curve.split == "val" else "on the test set"
    title = tag("title", f"{row.name}: {format_percent(accuracy)} {place} after epoch {epoch:g}")
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    if len(places) > 1:
        shapes = [tag("path", d=path, class_=name) for name in ("line", "near")]
    else:
        shapes = [tag("circle", cx=places[0][0], cy=places[0][1], r=4, class_="dot")]
    return tag("g", title, *shapes, class_=f"series {row.style}", data_trial=number)


def _thin(curve: Curve, most: int) -> Curve:
    """Return at most about `most` points of a curve, evenly spaced, with the last one."""
    stride = math.ceil(len(curve.points) / most)
    return Curve(curve.split, curve.points[::-1][::stride][::-1])
