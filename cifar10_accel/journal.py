"""What a run tells while it goes on: lines of metrics to the tracker, rows and a bar to the console."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from cifar10_accel.console import RunConsole
from cifar10_accel.data.batches import BatchPlan
from cifar10_accel.engine import require_finite
from cifar10_accel.settings import Settings
from cifar10_accel.tracking import Tracker
from cifar10_accel.training_state import TrainingState

Metrics = dict[str, float]


class Journal:
    """Context that reports one run. All ranks call its methods; the main process writes."""

    def __init__(self, tracker: Tracker, console: RunConsole, plan: BatchPlan, settings: Settings) -> None:
        self.tracker = tracker
        self._console = console
        self._plan = plan
        self._settings = settings
        self._last_line: Metrics = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.tracker)
            stack.enter_context(self._console)
            self._contexts = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.__exit__(kind, error, trace)

    def line(self, state: TrainingState, *, lr: float) -> None:
        """Logs the means since the last line, over all ranks. The only place where training waits for a GPU."""
        totals = state.accelerator.reduce(state.since_line)
        require_finite(totals, f"the loss near update {state.step}, lr {lr:g},")
        loss, right, num_images = totals.tolist()
        state.since_line.zero_()
        new = (loss, right, num_images)
        state.since_epoch = [before + now for before, now in zip(state.since_epoch, new, strict=True)]
        self._last_line = {
            "train/loss": loss / num_images,
            "train/accuracy": right / num_images,
            "lr": lr,
            "momentum": self._settings.momentum,
            "images_per_second": num_images / state.watch.lap(),
        }
        self._log(state, self._last_line)
        self._console.update(state.step, self._last_line["images_per_second"])

    def epoch(self, state: TrainingState, measured: Metrics) -> None:
        """Logs what was measured at the end of an epoch and prints its row: means over the whole epoch."""
        if measured:
            self._log(state, measured)
        loss, right, num_images = state.since_epoch
        state.since_epoch = [0.0, 0.0, 0.0]
        row = {"epoch": self._epoch_of(state), "seconds": state.watch.seconds(), **self._last_line, **measured}
        if num_images:  # none when a finished training is only evaluated again
            row |= {"train/loss": loss / num_images, "train/accuracy": right / num_images}
        self._console.epoch(row)

    def say(self, text: Any) -> None:
        """Prints something worth reading, on the main process only."""
        self._console.say(text)

    def _log(self, state: TrainingState, metrics: Metrics) -> None:
        self.tracker.log(metrics, step=state.step, epoch=self._epoch_of(state))

    def _epoch_of(self, state: TrainingState) -> float:
        return state.step / self._plan.steps_per_epoch
