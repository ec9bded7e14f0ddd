"""What a sweep file may say about one parameter: W&B's distributions, and the values they stand for.

A distribution is an `Interval` or a `Choice`. Both turn a number or an option that a search drew into
the value of the setting, so that a search needs to know nothing but intervals and options.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast, get_args

from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.trials import Parameter

INSIDE = 0.381966  # a place inside an interval that is no round number


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Numbers from `low` to `high`, drawn evenly or evenly on a log scale, rounded to multiples of `step` if given."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def value(self, drawn: float) -> Parameter:
        """The value that a drawn number stands for; always inside the bounds."""
        if self.whole:
            return int(drawn)
        if self.step is None:
            return float(drawn)
        count = min(max(round(drawn / self.step), math.ceil(self.low / self.step)), math.floor(self.high / self.step))
        rounded = round(count * self.step, 12)
        return int(rounded) if float(self.step).is_integer() else rounded

    def corners(self) -> list[Parameter]:
        """Values that must be valid if all are: both ends, and one inside."""
        inside = self.low + INSIDE * (self.high - self.low)
        return [self.value(place) for place in (self.low, inside, self.high)]

    def every_value(self) -> list[Parameter] | None:
        """All values in order; None if there is no end of them."""
        step = 1 if self.whole else self.step
        if step is None or self.log:
            return None
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [self.value(count * step) for count in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of some values, all as likely, or as likely as `probabilities` says (which add up to 1)."""

    values: tuple[Parameter, ...]
    probabilities: tuple[float, ...] | None = None

    def value(self, drawn: Any) -> Parameter:
        """The value itself or, where probabilities are given, the one at this place between 0 and 1."""
        if self.probabilities is None:
            return cast(Parameter, drawn)
        ends = list(accumulate(self.probabilities))[:-1]
        return self.values[sum(bool(drawn >= end) for end in ends)]

    def corners(self) -> list[Parameter]:
        """Every value."""
        return list(self.values)

    def every_value(self) -> list[Parameter]:
        """Every value, in the file's order."""
        return list(self.values)


Space = Interval | Choice

# W&B's name -> the keys it takes besides `distribution`. The others of W&B (normal, beta, inv_log...) suit no
# setting here: their tails leave every range.
DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "categorical_w_probabilities": ("values", "probabilities"),
    "uniform": ("min", "max"),
    "int_uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform": ("min", "max", "q"),
    "q_log_uniform_values": ("min", "max", "q"),
}


def read_space(name: str, given: Any) -> Space:
    """The space of one parameter of a sweep file; a constant is a `Choice` of one. `SettingsError` names the fault."""
    if not isinstance(given, Mapping):
        raise SettingsError(f"{name}: expected `value:`, `values:` or `min:` and `max:`, found {given!r}")
    if "parameters" in given:
        raise SettingsError(f"{name}: nested parameters are not supported; settings are flat, give each by its name")
    distribution = given.get("distribution") or _inferred(name, given)
    allowed = DISTRIBUTIONS.get(distribution)
    if allowed is None:
        hint = did_you_mean(str(distribution), list(DISTRIBUTIONS))
        raise SettingsError(f"{name}: no distribution {distribution!r}{hint}; there are {', '.join(DISTRIBUTIONS)}")
    unknown = sorted(str(key) for key in given.keys() - {"distribution", *allowed})
    if unknown:
        raise SettingsError(f"{name}: {unknown[0]!r} means nothing to {distribution}, which takes {', '.join(allowed)}")
    missing = [key for key in allowed if key not in given and key not in ("q", "probabilities")]
    if missing:
        raise SettingsError(f"{name}: {distribution} needs {' and '.join(missing)}")
    if distribution == "constant":
        return Choice(values=(_scalar(name, given["value"]),))
    return _choice(name, given) if "values" in allowed else _interval(name, str(distribution), given)


def _inferred(name: str, given: Mapping[str, Any]) -> str:
    """The distribution W&B assumes where none is named."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical"
    if "min" in given and "max" in given:
        both_whole = all(type(given[key]) is int for key in ("min", "max"))
        return "int_uniform" if both_whole else "uniform"
    raise SettingsError(f"{name}: give `value:`, `values:`, or `min:` and `max:`")


def _choice(name: str, given: Mapping[str, Any]) -> Choice:
    values = given["values"]
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise SettingsError(f"{name}: values is {values!r}; give a list of at least one")
    probabilities = given.get("probabilities")
    if probabilities is not None:
        _check_probabilities(name, probabilities, count=len(values))
    scalars = tuple(_scalar(name, value) for value in values)
    if len({(type(value), value) for value in scalars}) < len(scalars):
        raise SettingsError(f"{name}: a value is given twice in {values!r}")
    return Choice(values=scalars, probabilities=None if probabilities is None else tuple(probabilities))


def _check_probabilities(name: str, probabilities: Any, *, count: int) -> None:
    numbers = isinstance(probabilities, list) and all(type(one) in (int, float) and one >= 0 for one in probabilities)
    if not numbers or len(probabilities) != count or not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        raise SettingsError(f"{name}: probabilities {probabilities!r}; give one for each of {count} values, sum 1")


def _interval(name: str, distribution: str, given: Mapping[str, Any]) -> Interval:
    low, high = (_number(name, key, given[key]) for key in ("min", "max"))
    if distribution in ("log_uniform", "q_log_uniform"):  # here W&B's bounds are the natural logs of the values'
        low, high = math.exp(min(low, 700)), math.exp(min(high, 700))
    if low >= high:
        raise SettingsError(f"{name}: min {given['min']} is not below max {given['max']}; swap or part them")
    log, whole = "log_uniform" in distribution, distribution == "int_uniform"
    if log and low <= 0:
        raise SettingsError(f"{name}: min {given['min']} has no logarithm; give {distribution} a min above 0")
    if whole and not (low.is_integer() and high.is_integer()):
        raise SettingsError(f"{name}: int_uniform from {given['min']} to {given['max']}; give whole numbers")
    step = _number(name, "q", given.get("q", 1)) if distribution.startswith("q_") else None
    if step is not None and (step <= 0 or math.ceil(low / step) > math.floor(high / step)):
        raise SettingsError(f"{name}: no multiple of q {step:g} lies between {given['min']} and {given['max']}")
    return Interval(low=low, high=high, log=log, step=step, whole=whole)


def _number(name: str, key: str, value: Any) -> float:
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    _refuse_number_as_text(name, value)
    raise SettingsError(f"{name}: {key} is {value!r}; give a number")


def _scalar(name: str, value: Any) -> Parameter:
    if isinstance(value, list | Mapping):
        raise SettingsError(f"{name}: {value!r} is no single value; write a list of words as one, like 'crop,flip'")
    _refuse_number_as_text(name, value)
    if not isinstance(value, get_args(Parameter)):
        raise SettingsError(
            f"{name}: {value!r} is a {type(value).__name__}; give a number, a word, true, false or null"
        )
    return cast(Parameter, value)


def _refuse_number_as_text(name: str, value: Any) -> None:
    """YAML's trap: 1e-5 without a point is text to the reader that W&B and this package use."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return
    if number is not None:
        raise SettingsError(f"{name}: {value!r} is text to YAML; write it as a number with a point, like 1.0e-5")
