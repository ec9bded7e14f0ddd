"""Progress of a run on stdout: a table row per epoch and, on a terminal, a progress bar with the time left."""

import os
import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cifar10_accel.formatting import format_seconds

COLUMNS = (
    "epoch",
    "lr",
    "train/loss",
    "train/accuracy",
    "val/accuracy",
    "test/accuracy",
    "images_per_second",
    "seconds",
)
TITLES = ("epoch", "lr", "train loss", "train acc", "val acc", "test acc", "images/s", "time")


class PipeSafeConsole(Console):
    """Console that ignores a closed stdout pipe (`| head`), where rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Send further output to /dev/null."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunProgress:
    """Context that shows the progress of one run on stdout; prints nothing on processes other than the main one."""

    def __init__(self, *, is_main: bool, start_step: int, stop_step: int, num_epochs: int) -> None:
        self._console = PipeSafeConsole(quiet=not is_main, soft_wrap=True, highlight=False)
        self._num_epochs = num_epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (is_main and self._console.is_terminal),
        )
        self._task = self._progress.add_task("training", total=stop_step, completed=start_step, rate="")

    def __enter__(self) -> Self:
        self._console.print("".join(f"{title:>11}" for title in TITLES), style="bold")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def print(self, text: Any) -> None:
        """Print a line, or anything that rich can render."""
        self._console.print(text)

    def update(self, step: int, images_per_second: float) -> None:
        """Move the progress bar to `step` completed steps and show the speed beside it."""
        self._progress.update(self._task, completed=step, rate=f"{images_per_second:,.0f} images/s")

    def print_epoch(self, row: dict[str, Any]) -> None:
        """Print the row of an epoch; metrics that were not measured stay blank."""
        cells = [self._cell(name, row.get(name)) for name in COLUMNS]
        self._console.print("".join(f"{cell:>11}" for cell in cells))

    def _cell(self, name: str, value: float | None) -> str:
        if value is None:
            return ""
        if name == "epoch":
            return f"{value:.3g}/{self._num_epochs}"
        if name == "seconds":
            return format_seconds(value)
        if name.endswith("accuracy"):
            return f"{value:.2%}"
        return f"{value:,.0f}" if name == "images_per_second" else f"{value:.4f}"
