"""What a mirror of metrics.jsonl can do, and TensorBoard as one. Trackers are Accelerate's classes."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker


class Mirror:
    """A tracker of Accelerate, started, with what all of them can do. Any method may raise anything."""

    def __init__(self, tracker: GeneralTracker, config: dict[str, Any]) -> None:
        self.tracker = tracker
        tracker.store_init_configuration(config)

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values, step=step)

    def log_table(self, columns: list[str], rows: list[list[Any]], name: str) -> None:
        pass

    def log_summary(self, values: dict[str, Any]) -> None:
        pass

    def finish(self, exit_code: int) -> None:
        self.tracker.finish()

    def upload_command(self, *, has_failed: bool) -> str | None:
        """The command that uploads what is only on this disk."""
        return None


class TensorBoardMirror(Mirror):
    """Curves, settings and images under run_dir/tensorboard."""

    def __init__(self, run_dir: Path, config: dict[str, Any], *, resume_step: int) -> None:
        scalars = {name: value if isinstance(value, int | float) else str(value) for name, value in config.items()}
        tracker = TensorBoardTracker("tensorboard", run_dir, purge_step=resume_step + 1)
        super().__init__(started(tracker), scalars)
        self._last_step = resume_step

    def log(self, values: dict[str, float], step: int) -> None:
        super().log(values, step)
        self._last_step = step

    def log_table(self, columns: list[str], rows: list[list[Any]], name: str) -> None:
        images = [cell for row in rows for cell in row if is_image(cell)]
        if images:
            self.tracker.log_images({name: np.stack(images)}, step=self._last_step, dataformats="NHWC")


def started(tracker: GeneralTracker) -> GeneralTracker:
    """The same tracker, started: Accelerate's own do nothing until then."""
    tracker.start()
    return tracker


def is_image(cell: Any) -> bool:
    """Whether a cell of a table is an (H, W, 3) uint8 image."""
    return isinstance(cell, np.ndarray) and cell.ndim == 3


def in_one_line(error: Exception) -> str:
    """What went wrong, short enough for a warning."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def warn(text: str) -> None:
    """Says on stderr what the user should know and need not act on at once."""
    print(f"warning: {text}", file=sys.stderr)
