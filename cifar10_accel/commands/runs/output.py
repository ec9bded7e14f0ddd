"""Listed runs as a table for the terminal, as JSON and as CSV, and the page of all of them."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cifar10_accel.files import output_of
from cifar10_accel.formatting import format_seconds
from cifar10_accel.runs.listing import FIELDS, ListedRun, Listing, read_curve
from cifar10_accel.tracking.console import LiteralConsole

COLUMNS: dict[str, Callable[[ListedRun], str]] = {
    "name": lambda run: run.name,
    "recipe": lambda run: str(run.value("recipe") or "-"),
    "data set": lambda run: str(run.value("dataset") or "-"),
    "seed": lambda run: str("-" if run.value("seed") is None else run.value("seed")),
    "test": lambda run: _percent(run.accuracy) + "*" * (run.split == "val"),
    "TTA": lambda run: _percent(run.tta),
    "time": lambda run: format_seconds(run.seconds),
    "state": lambda run: run.state,
    "date": lambda run: f"{run.date:%Y-%m-%d %H:%M}",
}
FOLDED = {"name": 18, "recipe": 7, "data set": 9}  # columns that may break values over lines, with their least width
NUMERIC = ("seed", "test", "TTA", "time")
SAME_FOR_ALL = ("recipe", "data set", "seed")  # said once above a narrow table if all runs have the same
RECORD_FIELDS = (*FIELDS[:5], "split", *FIELDS[5:], "path", "reason")
INDEX = "index.html"


def print_table(runs: Sequence[ListedRun], *, folder: Path) -> None:
    """Print a table of the runs that fits the terminal, or has one line for each run where a program reads it.

    Columns without any value are left out. A table that would be too wide is narrowed (`_narrow`).
    """
    console = LiteralConsole()
    title = f"{len(runs):,} {'run' if len(runs) == 1 else 'runs'} in {folder}"
    cells = {name: [text(run) for run in runs] for name, text in COLUMNS.items()}
    cells = {name: texts for name, texts in cells.items() if name == "name" or set(texts) != {"-"}}
    table = _table(cells)
    width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    if not console.is_terminal:
        console.width = width
    elif width >= console.width:
        table, shared = _narrow(runs, cells)
        title += f"; all: {shared}" if shared else ""
        console.width -= 1  # some terminals wrap a line that fills them
    console.print(title)
    console.print(table)
    if any(run.split == "val" for run in runs):
        console.print("* accuracy on the hold-out: not tested")


def as_json(runs: Sequence[ListedRun]) -> str:
    """Return the runs as a JSON list of objects; accuracies are 0..1, missing values null."""
    return json.dumps([_record(run) for run in runs], indent=1)


def as_csv(runs: Sequence[ListedRun]) -> str:
    """Return the runs as CSV with a header; accuracies are 0..1, missing values empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, RECORD_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_record(run) for run in runs)
    return text.getvalue()


def unreadable_line(listing: Listing) -> str:
    """Return one line about the folders that could not be read; empty if there are none."""
    count = len(listing.unreadable)
    if not count:
        return ""
    first = " ".join(listing.unreadable[0].split())  # a path may have line breaks
    return f"not listed: {first}" if count == 1 else f"not listed: {count:,} damaged folders, the first: {first}"


def write_index(listing: Listing, runs: Sequence[ListedRun]) -> Path:
    """Write index.html into the listed folder: the runs, their curves, and links to reports and comparisons.

    Raises:
        OutOfResourcesError: The disk is full.
        SettingsError: It cannot be written for another reason.
    """
    from cifar10_accel.report.index_page import write_index_page  # only --html needs it

    path = listing.folder / INDEX
    with output_of(None, path):
        write_index_page(path, listing, runs, curves=[read_curve(run) for run in runs])
    return path


def _narrow(runs: Sequence[ListedRun], cells: dict[str, list[str]]) -> tuple[Table, str]:
    """Return a table in which long names are broken over lines, and as text the values of all runs that it leaves out.

    Only runs without a training time have their state, in its place, and dates have no time of day.
    """
    shared = {name: cells[name][0] for name in SAME_FOR_ALL if len(runs) > 1 and len(set(cells.get(name, ()))) == 1}
    date = "%m-%d" if len({run.date.year for run in runs}) == 1 else "%Y-%m-%d"
    changed = {
        "time": [run.state if run.seconds is None or run.state != "finished" else COLUMNS["time"](run) for run in runs],
        "date": [run.date.strftime(date) for run in runs],
    }
    kept = {name: texts for name, texts in (cells | changed).items() if name not in (*shared, "state")}
    return _table(kept), ", ".join(f"{name} {value}" for name, value in shared.items())


def _table(cells: dict[str, list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for name, texts in cells.items():
        table.add_column(
            name,
            justify="right" if name in NUMERIC else "left",
            overflow="fold",
            no_wrap=name not in FOLDED,
            min_width=min(FOLDED.get(name, 0), max(map(len, [name, *texts]))),
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def _record(run: ListedRun) -> dict[str, Any]:
    values = {name: getattr(run, name) if hasattr(run, name) else run.value(name) for name in RECORD_FIELDS}
    return values | {"recipe": run.value("recipe"), "path": str(run.path), "date": run.date.isoformat("T", "seconds")}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
