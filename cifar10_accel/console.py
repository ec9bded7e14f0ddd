"""What a person sees while a run goes on: a line per epoch, and on a terminal a bar with the time left."""

import os
import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


class LastingConsole(Console):
    """A console whose reader may leave, as `| head` does: rich would end the process, training goes on unheard."""

    def on_broken_pipe(self) -> None:
        """Sends what is still to be said nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


class RunConsole:
    """Context that shows the progress of one run on stdout; silent on every process but the main one."""

    def __init__(self, *, is_main: bool, start_step: int, stop_step: int, num_epochs: int) -> None:
        self._console = LastingConsole(quiet=not is_main, soft_wrap=True, highlight=False)
        self._num_epochs = num_epochs
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("updates"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, transient=True, disable=not (is_main and self._console.is_terminal),
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=stop_step, completed=start_step, rate="")

    def __enter__(self) -> Self:
        self._console.print("".join(f"{title:>11}" for title in TITLES), style="bold")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: Any) -> None:
        """Prints a line, or anything rich can render."""
        self._console.print(text)

    def update(self, step: int, images_per_second: float) -> None:
        """Moves the bar to `step` updates done."""
        self._progress.update(self._task, completed=step, rate=f"{images_per_second:,.0f} images/s")

    def epoch(self, row: dict[str, Any]) -> None:
        """Prints the line of an epoch; metrics that were not measured stay blank."""
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


def format_seconds(seconds: float) -> str:
    """Minutes and seconds, as 9:58 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
