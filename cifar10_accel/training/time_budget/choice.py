"""Choice of a recipe and a number of epochs, as a function of the seconds that a step takes.

A recipe is tuned for its own number of epochs. It may get fewer or more, within limits: fewer than a quarter are no
training of that recipe any more, and more than twice as many have not been tried. A budget is a limit, not a target.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cifar10_accel.formatting import format_duration, format_seconds, format_short

USED_SHARE = 0.97  # of the budget; the rest is for steps that take longer than those that were timed
LEAST_SHARE_OF_A_CANDIDATE = 1 / 2  # of a recipe's own epochs, for a recipe that a smaller one could replace
LEAST_SHARE = 1 / 4  # of the own epochs of a recipe that none could replace
LARGEST_SHARE = 2


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """The measured speed of a recipe."""

    recipe: str
    epochs: int  # the recipe's own number
    low_res_fraction: float  # share of the epochs, whatever their number, that has small images
    steps_per_epoch: int
    seconds: float  # of a step
    low_res_seconds: float = 0.0  # of a step with small images; 0: there are none
    is_lower_bound: bool = False  # steps take longer than this, which is long enough to do without this recipe

    def training_seconds(self, epochs: int) -> float:
        """Return the seconds that a training of so many epochs takes."""
        low_res_epochs = round(self.low_res_fraction * epochs)
        full_epochs = epochs - low_res_epochs
        return self.steps_per_epoch * (low_res_epochs * self.low_res_seconds + full_epochs * self.seconds)

    def least_epochs(self, share: float) -> int:
        """Return the number of epochs that is this share of the recipe's own, rounded up."""
        return math.ceil(share * self.epochs)

    def most_epochs(self, seconds: float) -> int:
        """Return the largest sensible number of epochs that ends in this time; 0 if not even one does."""
        numbers = range(1, LARGEST_SHARE * self.epochs + 1)
        return max((number for number in numbers if self.training_seconds(number) <= seconds), default=0)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The recipe and the number of epochs for a time budget."""

    budget: float  # seconds
    times: StepTimes  # of the chosen recipe
    epochs: int
    rejected: tuple[StepTimes, ...] = ()

    @property
    def seconds(self) -> float:
        """The seconds that the training is expected to take."""
        return self.times.training_seconds(self.epochs)

    @property
    def fits(self) -> bool:
        """True if the training is expected to end within the budget."""
        return self.seconds <= self.budget

    def __str__(self) -> str:
        """Return the choice and the reasons, in two lines."""
        return f"{self._chosen()}\n  {'; '.join([*map(self._why_rejected, self.rejected), self._measured()])}"

    def _chosen(self) -> str:
        own = self.times.epochs
        bound = ""
        if not self.fits:
            bound = ", the least that is sensible"
        elif self.epochs == LARGEST_SHARE * own:
            bound = ", the most that is sensible"
        excess = "" if self.fits else f", {format_seconds(self.seconds - self.budget)} more than the budget"
        return (
            f"time budget {format_duration(self.budget)}: recipe {self.times.recipe}, {self.epochs} epochs{bound} "
            f"(tuned for {own}), about {format_seconds(self.seconds)} of training{excess}"
        )

    def _measured(self) -> str:
        times = self.times
        low_res = f", with small images {format_short(times.low_res_seconds)} s" if times.low_res_seconds else ""
        return (
            f"{times.recipe}: a step takes {format_short(times.seconds)} s{low_res}; "
            f"{times.steps_per_epoch} steps an epoch"
        )

    @staticmethod
    def _why_rejected(times: StepTimes) -> str:
        least = times.least_epochs(LEAST_SHARE_OF_A_CANDIDATE)
        about = "more than" if times.is_lower_bound else "about"
        return f"{times.recipe}: even {least} epochs would take {about} {format_seconds(times.training_seconds(least))}"


def choose(candidates: Iterable[StepTimes], *, budget: float) -> Choice:
    """Return the first recipe of which enough epochs fit, with as many as fit.

    Args:
        candidates: The most accurate recipe first; those after the first that fits are not asked for.
        budget: Seconds of training.

    Returns:
        The choice; if no recipe fits, the last one with the least number of epochs that is sensible, or with more if
        they fit.
    """
    rejected: list[StepTimes] = []
    for times in candidates:
        epochs = times.most_epochs(USED_SHARE * budget)
        if epochs >= times.least_epochs(LEAST_SHARE_OF_A_CANDIDATE):
            return Choice(budget=budget, times=times, epochs=epochs, rejected=tuple(rejected))
        rejected.append(times)
    last = rejected.pop()
    epochs = max(last.most_epochs(USED_SHARE * budget), last.least_epochs(LEAST_SHARE))
    return Choice(budget=budget, times=last, epochs=epochs, rejected=tuple(rejected))
