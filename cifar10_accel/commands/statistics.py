"""Statistics over seeds, and tests of the difference between two recipes or two models."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95
POWER = 0.8  # probability that a real difference is seen
FEW = 5  # below this many seeds the interval depends strongly on the values being normally distributed


@dataclass(frozen=True, kw_only=True)
class SampleStats:
    """Summary statistics of the values of several seeds. Fields that need two values are NaN for one."""

    num: int
    mean: float
    sd: float  # standard deviation of a single run (n - 1 in the denominator)
    standard_error: float  # of the mean
    low: float  # of the confidence interval of the mean, by Student's t
    high: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "SampleStats":
        """Return the statistics of at least one value."""
        num, mean = len(values), statistics.fmean(values)
        sd = statistics.stdev(values) if num > 1 else math.nan
        error = sd / math.sqrt(num)
        half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) if num > 1 else math.nan
        return cls(
            num=num,
            mean=mean,
            sd=sd,
            standard_error=error,
            low=mean - half,
            high=mean + half,
            minimum=min(values),
            maximum=max(values),
        )

    def summary(self) -> str:
        """Return one line with the statistics of an accuracy, in percent."""
        line = f"mean {self.mean:.2%}"
        if self.num > 1:
            line += f", sd {self.sd:.2%}, standard error {self.standard_error:.2%}"
        return f"{line}, min {self.minimum:.2%}, max {self.maximum:.2%} ({self.num} seed{'s' * (self.num > 1)})"


def mcnemar(fixed: int, broken: int) -> float:
    """Return the exact two-sided p-value of McNemar's test of two models on the same images.

    If both models were equally good, each image that only one of them predicts correctly would be as likely to be of
    the one as of the other, so the counts follow a binomial distribution (McNemar 1947).

    Args:
        fixed: Images that only the second model predicts correctly.
        broken: Images that only the first model predicts correctly.

    Returns:
        The p-value; 1 if there are no such images.
    """
    changed = fixed + broken
    return float(stats.binomtest(fixed, changed, 0.5).pvalue) if changed else 1.0


def verdict(difference: SampleStats) -> str:
    """Return one line that says whether paired differences of an accuracy are more than chance."""
    points = f"{100 * difference.mean:+.2f} points"
    if difference.num < 2:
        return f"difference {points} on one seed: too few for any conclusion; give --seeds 5 or more"
    interval = f"95% interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    if difference.low <= 0 <= difference.high:
        needed = _seeds_needed(difference)
        line = f"difference {points}, {interval}: too few seeds to distinguish it from chance"
        return line + (f" (about {needed} would show it in four of five cases if it is real)" if needed else "")
    few = f"; with {difference.num} seeds only if accuracies are normally distributed" if difference.num < FEW else ""
    return f"difference {points}, {interval}: more than chance{few}"


def _seeds_needed(difference: SampleStats) -> int | None:
    """Return the number of seeds whose interval excludes zero with a probability of POWER at this mean and sd.

    The usual approximation by Student's t; None if it is more than 1,000.
    """
    for num in range(difference.num + 1, 1001):
        quantiles = float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1) + stats.t.ppf(POWER, num - 1))
        if quantiles * difference.sd / math.sqrt(num) < abs(difference.mean):
            return num
    return None
