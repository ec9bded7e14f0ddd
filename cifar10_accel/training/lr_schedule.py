"""Learning rate schedules as pure functions of the step: no torch, no state."""

import math
from dataclasses import dataclass
from typing import Literal

from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import ScheduleSettings


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """One-cycle schedule: from `initial_lr` up to `max_lr` at `peak_step`, then down to `final_lr`.

    The first step has number 0; the last, `total_steps - 1`, has exactly `final_lr`.

    Source: Smith and Topin 2018, https://arxiv.org/abs/1708.07120. The default form is the piecewise linear schedule
    of DAWNBench's CIFAR-10 entries.
    """

    total_steps: int
    peak_step: int
    initial_lr: float
    max_lr: float
    final_lr: float
    anneal: Literal["linear", "cos"]

    @classmethod
    def of(cls, settings: ScheduleSettings, *, steps_per_epoch: int) -> "OneCycle":
        """Return the schedule of the settings; independent of the numbers of processes and accumulation steps."""
        initial_lr = settings.max_lr / settings.div_factor
        return cls(
            total_steps=settings.epochs * steps_per_epoch,
            peak_step=round(settings.peak_epoch * steps_per_epoch),
            initial_lr=initial_lr,
            max_lr=settings.max_lr,
            final_lr=initial_lr / settings.final_div_factor,
            anneal=settings.anneal,
        )

    def lr_at(self, step: int) -> float:
        """Return the LR of step `step`; `final_lr` for any step after the last."""
        if step < self.peak_step:
            return self._between(self.initial_lr, self.max_lr, step / self.peak_step)
        last = max(self.total_steps - 1, self.peak_step + 1)
        fraction = (step - self.peak_step) / (last - self.peak_step)
        return self._between(self.max_lr, self.final_lr, min(1.0, fraction))

    def _between(self, start: float, end: float, fraction: float) -> float:
        if self.anneal == "cos":
            fraction = (1 - math.cos(math.pi * fraction)) / 2
        return start * (1 - fraction) + end * fraction


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """The ramp of an LR range test (Smith 2015, https://arxiv.org/abs/1506.01186)."""

    total_steps: int
    min_lr: float
    max_lr: float
    growth: Literal["exponential", "linear"]

    def __post_init__(self) -> None:
        if self.max_lr <= self.min_lr:
            raise SettingsError(
                f"end-lr: {self.max_lr:g} is not above the first LR, {self.min_lr:g}; "
                "give --end-lr a value above --start-lr"
            )

    def lr_at(self, step: int) -> float:
        """Return the LR of step `step`: `min_lr` at 0, `max_lr` at `total_steps - 1`."""
        fraction = step / max(1, self.total_steps - 1)
        if self.growth == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * fraction
        return float(self.min_lr * (self.max_lr / self.min_lr) ** fraction)
