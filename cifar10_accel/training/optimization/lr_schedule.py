"""Learning rate schedules as pure functions of the step: no torch, no state."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cifar10_accel.components import is_import_path, load_component, user_code
from cifar10_accel.errors import InputError, SettingsError
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
class WarmupDecay:
    """Linear warm-up to `max_lr` at `peak_step`, `max_lr` until `decay_step`, then a fall to `final_lr`.

    Cosine decay (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983) falls from the peak on; warm-up, stable,
    decay (Hu et al. 2024, https://arxiv.org/abs/2404.06395) in the last part of the run; a constant LR never.
    """

    total_steps: int
    peak_step: int
    decay_step: int
    initial_lr: float
    max_lr: float
    final_lr: float
    anneal: Literal["linear", "cos"]

    def lr_at(self, step: int) -> float:
        """Return the LR of step `step`; `final_lr` from the last step on if it falls at all."""
        if step < self.peak_step:
            return self.initial_lr + (self.max_lr - self.initial_lr) * step / self.peak_step
        if step < self.decay_step:
            return self.max_lr
        last = max(self.total_steps - 1, self.decay_step + 1)
        fraction = min(1.0, (step - self.decay_step) / (last - self.decay_step))
        if self.anneal == "cos":
            fraction = (1 - math.cos(math.pi * fraction)) / 2
        return self.max_lr * (1 - fraction) + self.final_lr * fraction


@dataclass(frozen=True, kw_only=True)
class ImportedSchedule:
    """A function of (step, total_steps) that returns the LR as a multiple of `max_lr`."""

    total_steps: int
    max_lr: float
    function: Callable[[int, int], float]
    path: str

    def lr_at(self, step: int) -> float:
        """Return the LR of step `step`.

        Raises:
            InputError: The function raises, or returns no finite number from 0 on.
        """
        with user_code(self.path, setting="schedule"):
            factor = float(self.function(step, self.total_steps))
        if not 0 <= factor < math.inf:
            raise InputError(f"schedule: {self.path} returned {factor} for step {step}; expected a multiple of max_lr")
        return self.max_lr * factor


Schedule = OneCycle | WarmupDecay | ImportedSchedule


def make_schedule(settings: ScheduleSettings, *, steps_per_epoch: int) -> Schedule:
    """Return the schedule of the settings; independent of the numbers of processes and accumulation steps.

    Raises:
        SettingsError: There is no such schedule.
    """
    one_cycle = OneCycle.of(settings, steps_per_epoch=steps_per_epoch)
    if settings.schedule == "one_cycle":
        return one_cycle
    total_steps = one_cycle.total_steps
    if is_import_path(settings.schedule):
        function = load_component(settings.schedule, setting="schedule")
        if not callable(function):
            raise SettingsError(f"schedule: {settings.schedule} is a {type(function).__name__}, not a function")
        imported = ImportedSchedule(
            total_steps=total_steps, max_lr=settings.max_lr, function=function, path=settings.schedule
        )
        imported.lr_at(0)  # an error in the first step would come after the run folder is opened
        return imported
    decay_steps = {
        "cosine": total_steps - one_cycle.peak_step,
        "constant": 0,
        "warmup_stable_decay": min(round(settings.decay_fraction * total_steps), total_steps - one_cycle.peak_step),
    }
    return WarmupDecay(
        total_steps=total_steps,
        peak_step=one_cycle.peak_step,
        decay_step=total_steps - decay_steps[settings.schedule],
        initial_lr=one_cycle.initial_lr,
        max_lr=settings.max_lr,
        final_lr=one_cycle.final_lr,
        anneal="cos" if settings.schedule == "cosine" else "linear",
    )


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """The ramp of an LR range test (Smith 2015, https://arxiv.org/abs/1506.01186)."""

    total_steps: int
    min_lr: float
    max_lr: float
    growth: Literal["exponential", "linear"]

    def __post_init__(self) -> None:
        # A smaller range has neighbouring steps with the same LR, between which no slope exists.
        if not self.max_lr >= 1.01 * self.min_lr:  # also where one of them is nan
            raise SettingsError(
                f"end-lr: {self.max_lr:g} is not above the first LR, {self.min_lr:g}, by 1% or more; "
                "give --end-lr a higher value"
            )

    def lr_at(self, step: int) -> float:
        """Return the LR of step `step`: `min_lr` at 0, `max_lr` at `total_steps - 1`."""
        fraction = step / max(1, self.total_steps - 1)
        if self.growth == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * fraction
        return float(self.min_lr * (self.max_lr / self.min_lr) ** fraction)
