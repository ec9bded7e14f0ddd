"""Search spaces of single parameters, read from the distributions of a W&B sweep file.

Each W&B distribution becomes an `Interval` or a `Choice`. Both turn the number or option drawn by a search into the
value of the setting, so a search only has to draw from intervals and options.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast, get_args

from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.runs.trial import Parameter

ROUNDING = 1e-12  # relative error of a quotient of two numbers that are rounded themselves
INSIDE = 0.381966  # fraction of an interval whose point is no round number


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Numbers from `low` to `high`, uniform or log-uniform, rounded to multiples of `step` if there is one."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def value(self, drawn: float) -> Parameter:
        """Return the setting's value for a drawn number, always within the bounds."""
        if self.whole:
            return int(drawn)
        if self.step is None:
            return float(drawn)
        counts = _counts(self.low, self.high, self.step)
        multiple = min(max(round(drawn / self.step), counts[0]), counts[-1]) * self.step
        return int(multiple) if float(self.step).is_integer() else float(f"{multiple:.15g}")

    def corners(self) -> list[Parameter]:
        """Return both bounds and a value between them; if these are valid, all values are."""
        inside = self.low + INSIDE * (self.high - self.low)
        return [self.value(place) for place in (self.low, inside, self.high)]

    def every_value(self) -> list[Parameter] | None:
        """Return all values in order; None for a continuous interval."""
        step = 1 if self.whole else self.step
        if step is None or self.log:
            return None
        return [self.value(count * step) for count in _counts(self.low, self.high, step)]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values, equally likely or with the given probabilities (which sum to 1)."""

    values: tuple[Parameter, ...]
    probabilities: tuple[float, ...] | None = None

    def value(self, drawn: Any) -> Parameter:
        """Return the drawn value itself or, with probabilities, the value at this quantile (0 to 1)."""
        if self.probabilities is None:
            return cast(Parameter, drawn)
        ends = list(accumulate(self.probabilities))[:-1]
        return self.values[sum(bool(drawn >= end) for end in ends)]

    def corners(self) -> list[Parameter]:
        """Return all values."""
        return list(self.values)

    def every_value(self) -> list[Parameter]:
        """Return all values, in the order of the file."""
        return list(self.values)


Space = Interval | Choice

# W&B's name -> its keys besides `distribution`. W&B's other distributions (normal, beta, inv_log...) are left out:
# their tails exceed the range of every setting.
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
    """Return the search space of one parameter of a sweep file; a constant is a `Choice` of one value.

    Raises:
        SettingsError: The distribution cannot be used; the message starts with the parameter's name.
    """
    if not isinstance(given, Mapping):
        raise SettingsError(f"{name}: expected `value:`, `values:` or `min:` and `max:`, found {given!r}")
    if "parameters" in given:
        raise SettingsError(f"{name}: nested parameters are not supported; give each by its name, such as {name}.key")
    distribution = given.get("distribution") or _inferred(name, given)
    allowed = DISTRIBUTIONS.get(distribution)
    if allowed is None:
        hint = did_you_mean(str(distribution), list(DISTRIBUTIONS))
        raise SettingsError(f"{name}: no distribution {distribution!r}{hint}; there are {', '.join(DISTRIBUTIONS)}")
    unknown = sorted(str(key) for key in given.keys() - {"distribution", *allowed})
    if unknown:
        raise SettingsError(f"{name}: {unknown[0]!r} is no key of {distribution}, which takes {', '.join(allowed)}")
    missing = [key for key in allowed if key not in given and key not in ("q", "probabilities")]
    if missing:
        raise SettingsError(f"{name}: {distribution} needs {' and '.join(missing)}")
    if distribution == "constant":
        return Choice(values=(_scalar(name, given["value"]),))
    return _choice(name, given) if "values" in allowed else _interval(name, str(distribution), given)


def _inferred(name: str, given: Mapping[str, Any]) -> str:
    """Return the distribution that W&B assumes if none is given."""
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
    if distribution in ("log_uniform", "q_log_uniform"):  # whose bounds are natural logarithms
        low, high = math.exp(min(low, 700)), math.exp(min(high, 700))
    if low >= high:
        raise SettingsError(f"{name}: min {given['min']} is not below max {given['max']}; give a min below max")
    log, whole = "log_uniform" in distribution, distribution == "int_uniform"
    if log and low <= 0:
        raise SettingsError(f"{name}: min {given['min']} has no logarithm; give {distribution} a min above 0")
    if whole and not (low.is_integer() and high.is_integer()):
        raise SettingsError(f"{name}: int_uniform from {given['min']} to {given['max']}; give whole numbers")
    step = _number(name, "q", given.get("q", 1)) if distribution.startswith("q_") else None
    if step is not None and (step <= 0 or not _counts(low, high, step)):
        raise SettingsError(f"{name}: no multiple of q {step:g} lies between {given['min']} and {given['max']}")
    return Interval(low=low, high=high, log=log, step=step, whole=whole)


def _counts(low: float, high: float, step: float) -> range:
    """Return the whole numbers whose products with the step lie from `low` to `high`, but for rounding errors."""
    first, last = low / step, high / step  # 0.3 / 0.1 is 2.9999999999999996
    return range(math.ceil(first - ROUNDING * abs(first)), math.floor(last + ROUNDING * abs(last)) + 1)


def _number(name: str, key: str, value: Any) -> float:
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    _reject_number_as_text(name, value)
    raise SettingsError(f"{name}: {key} is {value!r}; give a number")


def _scalar(name: str, value: Any) -> Parameter:
    if isinstance(value, list | Mapping):
        raise SettingsError(f"{name}: {value!r} is no single value; write a list as one text, like 'crop,flip'")
    _reject_number_as_text(name, value)
    if not isinstance(value, get_args(Parameter)):
        raise SettingsError(
            f"{name}: {value!r} is a {type(value).__name__}; give a number, a text, true, false or null"
        )
    return cast(Parameter, value)


def _reject_number_as_text(name: str, value: Any) -> None:
    """Raise `SettingsError` for text such as '1e-5': YAML 1.1 needs a decimal point in a number with an exponent."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return
    if number is not None:
        raise SettingsError(f"{name}: {value!r} is text to YAML; write it as a number with a point, like 1.0e-5")
