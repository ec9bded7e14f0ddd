"""Logging of training metrics: to the tracker, and as a table and a progress bar on the terminal."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from cifar10_accel.components import is_import_path
from cifar10_accel.data.batch_plan import BatchPlan
from cifar10_accel.settings import Settings
from cifar10_accel.tracking.progress import RunProgress
from cifar10_accel.tracking.tracker import Tracker
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
        """Log the means over the steps since the last call, of all ranks. The only wait for a GPU in the loop.

        Raises:
            NonFiniteError: The loss of one of these steps is not finite, on any rank.
        """
        totals = state.accelerator.reduce(state.metrics_since_log)
        require_finite(totals, f"the loss near step {state.step}, lr {lr:g},")
        loss, correct, num_images = totals.tolist()
        state.metrics_since_log.zero_()
        new = (loss, correct, num_images)
        state.epoch_metrics = [before + now for before, now in zip(state.epoch_metrics, new, strict=True)]
        self._last_evaluation = {}
        self._last_metrics = {
            "train/loss": loss / num_images,
            "train/accuracy": correct / num_images,
            "lr": lr,
            **({} if is_import_path(self._settings.optimizer) else {"momentum": self._settings.momentum}),
            "images_per_second": num_images / state.stopwatch.lap(),
        }
        self.log(state, self._last_metrics)
        self._progress.update(state.step, self._last_metrics["images_per_second"])

    def log_epoch(self, state: TrainingState, evaluated: Metrics) -> None:
        """Log the evaluation at the end of an epoch and print the epoch's row: means over all its steps."""
        self._last_evaluation = evaluated
        if evaluated:
            self.log(state, evaluated)
        loss, correct, num_images = state.epoch_metrics
        state.epoch_metrics = [0.0, 0.0, 0.0]
        row = {"epoch": self._epoch_of(state), "seconds": state.stopwatch.seconds(), **self._last_metrics, **evaluated}
        if num_images:  # none when a finished training is only evaluated again
            row |= {"train/loss": loss / num_images, "train/accuracy": correct / num_images}
        self._progress.print_epoch(row)

    def newest(self) -> Metrics:
        """Return the last training metrics and the evaluation after them, if there was one."""
        return self._last_metrics | self._last_evaluation

    def print(self, text: Any) -> None:
        """Print a line or a rich renderable, on the main process only."""
        self._progress.print(text)

    def log(self, state: TrainingState, metrics: Metrics) -> None:
        """Log metrics at the state's step."""
        self.tracker.log(metrics, step=state.step, epoch=self._epoch_of(state))

    def _epoch_of(self, state: TrainingState) -> float:
        return state.step / self._plan.steps_per_epoch
