"""Warning, at the end of an epoch, that a training has become slower and will end after its time budget."""

import logging

from cifar10_accel.formatting import format_duration, format_seconds
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import TrainingState
from cifar10_accel.training.time_budget.choice import Choice

TOLERATED_SHARE = 1.1  # of the budget: later than this is worth a warning

logger = logging.getLogger(__name__)


class BudgetWatch:
    """Estimate, at the end of each epoch, of the end of the training; it warns once and changes nothing.

    Args:
        setup: Of the run.
        state: At the step from which it is trained now.
        choice: If it was made now. A lateness that it has announced is not announced again, and it knows how much less
            a step with small images costs; else their share of the pixels stands for that.
    """

    def __init__(self, setup: RunSetup, state: TrainingState, choice: Choice | None) -> None:
        settings, plan = setup.settings, setup.plan
        self._budget = settings.time_budget
        self._is_main = setup.accelerator.is_main_process
        self._low_res_steps = settings.low_res_epochs * plan.steps_per_epoch
        self._low_res_cost = (settings.low_res_size / setup.dataset.image_format.size) ** 2
        self._latest = TOLERATED_SHARE * (self._budget or 0)
        if choice is not None:
            self._latest = TOLERATED_SHARE * max(choice.budget, choice.seconds)
            if choice.times.low_res_seconds:
                self._low_res_cost = choice.times.low_res_seconds / choice.times.seconds
        all_steps = settings.epochs * plan.steps_per_epoch
        self._stop_step = min(all_steps, settings.max_steps or all_steps)
        self._mark = state.step, state.stopwatch.seconds()
        # The first steps of each image size compile, and choose kernels on a GPU: that time does not recur.
        has_slow_starts = settings.compile or setup.accelerator.device.type != "cpu"
        self._slow_starts = {state.step, self._low_res_steps} if has_slow_starts else set()

    def end_epoch(self, state: TrainingState) -> None:
        """Warn, the first time, if the training would end too late at the speed of the steps since the last call."""
        (step, before), now = self._mark, state.stopwatch.seconds()
        self._mark = state.step, now
        remaining = self._cost(state.step, self._stop_step)
        if self._budget is None or remaining == 0 or step in self._slow_starts:
            return
        end = now + remaining * (now - before) / self._cost(step, state.step)
        if end <= self._latest:
            return
        self._latest = float("inf")
        if self._is_main:
            late = format_seconds(end - self._budget)
            logger.warning(
                f"time budget {format_duration(self._budget)}: at the speed of the last epoch the training will take "
                f"{format_seconds(end)}, {late} more than the budget; it goes on unchanged"
            )

    def _cost(self, start: int, stop: int) -> float:
        """Return the cost of steps, in full-size steps."""
        small = max(0, min(stop, self._low_res_steps) - start)
        return self._low_res_cost * small + (stop - start - small)
