"""Mean and spread over seeds, and what chance has to do with a difference of two recipes or two nets."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95
FEW = 5  # below this many seeds the interval leans heavily on the values being normally distributed


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of the values of several seeds; what needs two values is nan for one."""

    num: int
    mean: float
    sd: float  # of a single run (n - 1 in the denominator)
    standard_error: float  # of the mean
    low: float  # of the confidence interval of the mean, by Student's t
    high: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        num, mean = len(values), statistics.fmean(values)
        sd = statistics.stdev(values) if num > 1 else math.nan
        error = sd / math.sqrt(num)
        half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) if num > 1 else math.nan
        return cls(
            num=num, mean=mean, sd=sd, standard_error=error, low=mean - half, high=mean + half,
            minimum=min(values), maximum=max(values),
        )  # fmt: skip

    def in_words(self) -> str:
        """The values of an accuracy in one line, in percent."""
        line = f"mean {self.mean:.2%}"
        if self.num > 1:
            line += f", sd {self.sd:.2%}, standard error {self.standard_error:.2%}"
        return f"{line}, min {self.minimum:.2%}, max {self.maximum:.2%} ({self.num} seed{'s' * (self.num > 1)})"


def mcnemar(fixed: int, broken: int) -> float:
    """The exact two-sided p-value of McNemar's test of two nets on the same images; 1 where none changed.

    fixed, broken: images that only the second, or only the first, got right. If both nets were equally good
    the changes would fall either way like coins. (McNemar 1947; exact by the binomial distribution)
    """
    changed = fixed + broken
    return float(stats.binomtest(fixed, changed, 0.5).pvalue) if changed else 1.0


def verdict(difference: Spread) -> str:
    """What the paired differences of an accuracy show, in plain words; honest where they show nothing."""
    points = f"{100 * difference.mean:+.2f} points"
    if difference.num < 2:
        return f"difference {points} on one seed: too few to tell anything; give --seeds 5 or more"
    interval = f"95% interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    if difference.low <= 0 <= difference.high:
        needed = _seeds_needed(difference)
        words = f"difference {points}, {interval}: too few seeds to tell it from chance"
        return words + (f" (about {needed} would do if it is real)" if needed else "")
    few = f"; with {difference.num} seeds only if accuracies are normally distributed" if difference.num < FEW else ""
    return f"difference {points}, {interval}: more than chance{few}"


def _seeds_needed(difference: Spread) -> int | None:
    """Seeds with which a difference of this mean and sd would leave zero outside; None where more than 1,000."""
    for num in range(difference.num + 1, 1001):
        half = difference.sd / math.sqrt(num) * float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1))
        if half < abs(difference.mean):
            return num
    return None
