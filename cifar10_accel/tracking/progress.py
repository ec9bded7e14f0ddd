"""Progress of a run on stdout: a table row per epoch and a progress bar with the time left.

The bar is drawn on a terminal, and in a notebook as HTML; anywhere else there are only the rows.
"""

import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cifar10_accel.formatting import format_seconds
from cifar10_accel.tracking.console import LiteralConsole

T = TypeVar("T")

# Metric, title and width of the columns, 72 characters in all: one of the two accuracies of an evaluation is shown.
COLUMNS = (
    ("epoch", "epoch", 9),
    ("lr", "lr", 9),
    ("train/loss", "train loss", 12),
    ("train/accuracy", "train acc", 11),
    ("val/accuracy", "val acc", 10),
    ("test/accuracy", "test acc", 10),
    ("images_per_second", "images/s", 11),
    ("seconds", "time", 10),
)


class RunProgress:
    """Context that shows the progress of one run on stdout; prints nothing on processes other than the main one.

    Args:
        is_main: Whether this is the main process.
        start_step: Steps done before.
        stop_step: Steps at the end of the run.
        num_epochs: Epochs of the run.
        has_val: Whether epochs are evaluated on a hold-out; on the test set otherwise.
    """

    def __init__(
        self, *, is_main: bool, start_step: int, stop_step: int, num_epochs: int, has_val: bool = False
    ) -> None:
        self._console = LiteralConsole(quiet=not is_main, soft_wrap=True)
        self._num_epochs = num_epochs
        hidden = "test/accuracy" if has_val else "val/accuracy"
        self._columns = [column for column in COLUMNS if column[0] != hidden]
        self._bar = _make_bar(self._console, start_step=start_step, stop_step=stop_step)

    def __enter__(self) -> Self:
        self._console.print("".join(f"{title:>{width}}" for _, title, width in self._columns), style="bold")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def print(self, text: Any) -> None:
        """Print a line, or anything that rich can render."""
        self._console.print(text)

    def update(self, step: int, images_per_second: float) -> None:
        """Move the progress bar to `step` completed steps and show the speed beside it."""
        self._bar.update(step, f"{images_per_second:,.0f} images/s")

    def print_epoch(self, row: dict[str, Any]) -> None:
        """Print the row of an epoch; metrics that were not measured in it stay blank."""
        cells = [f"{self._cell(name, row.get(name)):>{width}}" for name, _, width in self._columns]
        self._console.print("".join(cells))

    def _cell(self, name: str, value: float | None) -> str:
        if value is None:
            return ""
        if name == "epoch":
            return f"{value:.0f}/{self._num_epochs}" if value == int(value) else f"{value:.1f}/{self._num_epochs}"
        if name == "seconds":
            return format_seconds(value)
        if name.endswith("accuracy"):
            return f"{value:.2%}"
        if name == "lr":
            return f"{value:.3g}"
        return f"{value:,.0f}" if name == "images_per_second" else f"{value:.4f}"


def track(items: Iterable[T], title: str, *, num_steps: int, is_main: bool) -> Iterator[T]:
    """Yield the items with a progress bar on the main process.

    Args:
        items: One for each step, at most `num_steps`.
        title: Shown beside the bar.
        num_steps: Steps at the end.
        is_main: Whether this is the main process; the others show nothing.
    """
    bar = _make_bar(LiteralConsole(quiet=not is_main), start_step=0, stop_step=num_steps)
    bar.start()
    try:
        for step, item in enumerate(items, start=1):
            yield item
            bar.update(step, title)
    finally:
        bar.stop()


class _Bar(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def update(self, step: int, rate: str) -> None: ...


def _make_bar(console: LiteralConsole, *, start_step: int, stop_step: int) -> _Bar:
    is_in_notebook = Console().is_jupyter and not console.quiet
    bar = _NotebookBar if is_in_notebook else _TerminalBar
    return bar(console, start_step=start_step, stop_step=stop_step)


class _TerminalBar:
    """Progress bar in the last line of a terminal, of at most 80 columns; hidden where stdout is something else."""

    def __init__(self, console: LiteralConsole, *, start_step: int, stop_step: int) -> None:
        self._progress = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.completed}/{task.total} steps, {task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=stop_step, completed=start_step, rate="- images/s")
        self.start, self.stop = self._progress.start, self._progress.stop

    def update(self, step: int, rate: str) -> None:
        self._progress.update(self._task, completed=step, rate=rate)


class _NotebookBar:
    """Progress bar below a notebook cell: one HTML display that is updated in place, and emptied at the end."""

    def __init__(self, console: LiteralConsole, *, start_step: int, stop_step: int) -> None:
        self._start_step, self._stop_step = start_step, stop_step
        self._notebook = import_module("IPython.display")
        self._started = 0.0
        self._display: Any = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._display = self._notebook.display(self._notebook.HTML(""), display_id=True)

    def stop(self) -> None:
        self._show("")

    def update(self, step: int, rate: str) -> None:
        seconds = time.monotonic() - self._started
        left = seconds / max(1, step - self._start_step) * (self._stop_step - step)
        self._show(
            f'<progress value="{step}" max="{self._stop_step}"></progress> '
            f"{step}/{self._stop_step} steps, {rate}, {format_seconds(seconds)}, left {format_seconds(left)}"
        )

    def _show(self, html: str) -> None:
        if self._display is not None:
            self._display.update(self._notebook.HTML(html))
