"""Interface of the tracker backends (W&B, Trackio, TensorBoard) and TensorBoard's."""

from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker


class TrackerBackend:
    """A started tracker of Accelerate with the methods that `Tracker` calls; any of them may raise any exception.

    Used as it is, the backend logs metrics and ignores tables and summaries.
    """

    def __init__(self, tracker: GeneralTracker, config: dict[str, Any]) -> None:
        self.tracker = tracker
        tracker.store_init_configuration(config)

    def log(self, values: dict[str, float], step: int) -> None:
        """Log metrics after `step` steps."""
        self.tracker.log(values, step=step)

    def log_table(self, columns: list[str], rows: list[list[Any]], name: str) -> None:
        """Log a table; cells that are (H, W, 3) uint8 arrays are images."""

    def log_summary(self, values: dict[str, Any]) -> None:
        """Set the final values of the run."""

    def finish(self, exit_code: int) -> None:
        """Close the run."""
        self.tracker.finish()

    def upload_command(self, *, has_failed: bool) -> str | None:
        """Return the shell command that uploads what is only on this disk; None if there is nothing to upload."""
        return None


class TensorBoardBackend(TrackerBackend):
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
    """Start a tracker and return it: Accelerate's trackers do nothing before `start()`."""
    if hasattr(tracker, "start"):  # of trackers outside Accelerate not all have it
        tracker.start()
    return tracker


def is_image(cell: Any) -> bool:
    """Return whether a table cell is an (H, W, 3) uint8 image."""
    return isinstance(cell, np.ndarray) and cell.ndim == 3
