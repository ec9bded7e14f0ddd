"""Logging of training metrics: to the tracker, and as a table and a progress bar on the terminal.

On a GPU the metrics of a step are logged when those of the next line are due, so that the loop never waits for them.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from cifar10_accel.components import is_import_path
from cifar10_accel.data.batch_plan import BatchPlan
from cifar10_accel.settings import Settings
from cifar10_accel.tracking.progress import RunProgress
from cifar10_accel.tracking.tracker import Tracker
from cifar10_accel.training.async_reader import AsyncReader
from cifar10_accel.training.state import TrainingState
from cifar10_accel.training.step import require_finite

Metrics = dict[str, float]


class MetricsLogger:
    """Context that logs one run. All ranks call its methods; the main process writes.

    Args:
        tracker: Gets every metric; opened and closed with this context.
        progress: Shows the run on the terminal; opened and closed with this context.
        plan: Gives the epoch of a step.
        settings: Of the run.
    """

    def __init__(self, tracker: Tracker, progress: RunProgress, plan: BatchPlan, settings: Settings) -> None:
        self.tracker = tracker
        self._progress = progress
        self._plan = plan
        self._settings = settings
        self._last_metrics: Metrics = {}
        self._last_evaluation: Metrics = {}  # of this epoch's end
        self._reader = AsyncReader()
        self._contexts = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.tracker)
            stack.enter_context(self._progress)
            self._contexts = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.__exit__(kind, error, trace)

    def log_step(self, state: TrainingState, *, lr: float) -> None:
        """Log the means over the steps since the last call, of all ranks.

        Raises:
            NonFiniteError: The loss of one of these steps is not finite, on any rank; on a GPU, that of a step before
                the last call.
        """
        totals = state.accelerator.reduce(state.metrics_since_log)
        mark = state.stopwatch.mark()
        self._reader.read(totals, partial(self._log_line, state, step=state.step, lr=lr, seconds_here=mark))
        state.metrics_since_log.zero_()

    def _log_line(
        self, state: TrainingState, totals: Tensor, *, step: int, lr: float, seconds_here: Callable[[], float]
    ) -> None:
        seconds = state.stopwatch.lap(seconds_here())
        require_finite(totals, f"the loss near step {step}, lr {lr:g},")
        loss, correct, num_images = totals.tolist()
        new = (loss, correct, num_images)
        state.epoch_metrics = [before + now for before, now in zip(state.epoch_metrics, new, strict=True)]
        self._last_evaluation = {}
        self._last_metrics = {
            "train/loss": loss / num_images,
            "train/accuracy": correct / num_images,
            "lr": lr,
            **({} if is_import_path(self._settings.optimizer) else {"momentum": self._settings.momentum}),
            "images_per_second": num_images / seconds,
        }
        self._log(self._last_metrics, step=step)
        self._progress.update(step, self._last_metrics["images_per_second"])

    def log_epoch(self, state: TrainingState, evaluated: Metrics) -> None:
        """Log the evaluation at the end of an epoch and print the epoch's row: means over all its steps."""
        seconds = state.stopwatch.seconds()
        self._reader.then(partial(self._log_epoch, state, evaluated, step=state.step, seconds=seconds))

    def _log_epoch(self, state: TrainingState, evaluated: Metrics, *, step: int, seconds: float) -> None:
        self._last_evaluation = evaluated
        if evaluated:
            self._log(evaluated, step=step)
        loss, correct, num_images = state.epoch_metrics
        state.epoch_metrics = [0.0, 0.0, 0.0]
        row = {"epoch": step / self._plan.steps_per_epoch, "seconds": seconds, **self._last_metrics, **evaluated}
        if num_images:  # none when a finished training is only evaluated again
            row |= {"train/loss": loss / num_images, "train/accuracy": correct / num_images}
        self._progress.print_epoch(row)

    def finish(self) -> None:
        """Log what was not yet logged. Call it before the state is saved, so that no metrics are between two runs.

        Raises:
            NonFiniteError: As `log_step`.
        """
        self._reader.finish()

    def newest(self) -> Metrics:
        """Return the last training metrics and the evaluation after them, if there was one; on a GPU this waits."""
        self._reader.finish()
        return self._last_metrics | self._last_evaluation

    def print(self, text: Any) -> None:
        """Print a line or a rich renderable, on the main process only."""
        self._progress.print(text)

    def log(self, state: TrainingState, metrics: Metrics) -> None:
        """Log metrics at the state's step."""
        self._reader.finish()
        self._log(metrics, step=state.step)

    def _log(self, metrics: Metrics, *, step: int) -> None:
        self.tracker.log(metrics, step=step, epoch=step / self._plan.steps_per_epoch)
