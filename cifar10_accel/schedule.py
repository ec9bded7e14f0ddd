"""Learning rates as pure functions of the update number: no torch, no state, nothing to save."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """One-cycle: from `initial_lr` up to `max_lr` at `peak_step`, then down to `final_lr`.

    (Smith and Topin 2018, https://arxiv.org/abs/1708.07120; the 24-epoch form is the piecewise
    linear one of DAWNBench's CIFAR-10 entries.) The first update has step 0, the last has
    `total_steps - 1` and runs at exactly `final_lr`.
    """

    total_steps: int
    peak_step: int
    initial_lr: float
    max_lr: float
    final_lr: float
    anneal: Literal["linear", "cos"]

    def lr_at(self, step: int) -> float:
        """LR of update `step`; it stays at `final_lr` for any step past the last."""
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

    def lr_at(self, step: int) -> float:
        """LR of update `step`: `min_lr` at 0, `max_lr` at `total_steps - 1`."""
        fraction = step / max(1, self.total_steps - 1)
        if self.growth == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * fraction
        return float(self.min_lr * (self.max_lr / self.min_lr) ** fraction)
