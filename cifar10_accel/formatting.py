"""Values, seconds, percentages and errors as text, for terminals and pages alike."""

import json
import math
import re
from collections.abc import Collection
from typing import Any

from cifar10_accel.errors import did_you_mean, why_no_setting

SMALLEST_P = 1e-300
DATASET_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "synthetic": "SYNTHETIC (not CIFAR-10)"}


def format_value(value: Any) -> str:
    """Return a setting's value as it is typed on the command line; reading it back gives the same value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value or math.isnan(value) else repr(value)
    if isinstance(value, list | tuple):
        return ",".join(map(format_value, value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value)
    return "none" if value is None else str(value)


def format_short(value: Any) -> str:
    """Return a value with three significant digits, for narrow tables."""
    return f"{value:.3g}" if isinstance(value, float) else format_value(value)


def format_metric(name: str, value: float | None) -> str:
    """Return a metric's value, an accuracy in percent; empty if there is none."""
    if value is None:
        return ""
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4g}"


def format_seconds(seconds: float | None) -> str:
    """Return a duration as 8.3 s, 9:08 (minutes) or 1:02:03 (hours); a dash for none."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_duration(seconds: float) -> str:
    """Return a duration as it is typed on the command line: 1h, 10m or 90s; settings read the same duration back."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{format_value(float(seconds))}s"


def format_p_value(p: float) -> str:
    """Return a p-value with three digits; one that is too small for a float, or nearly, is `< 1e-300`, never 0."""
    if math.isnan(p):
        return "-"
    return f"{p:.3g}" if p >= SMALLEST_P else f"< {SMALLEST_P:g}"


def dataset_title(name: str) -> str:
    """Return the data set's name as results show it; a synthetic set must not be taken for the real one."""
    return DATASET_TITLES.get(name, name)


def error_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 200 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def setting_error_line(details: Any, names: Collection[str]) -> str:
    """Return one of pydantic's errors as `name: value seen, what is allowed`.

    Args:
        details: An item of `ValidationError.errors()`.
        names: The settings that exist, for "did you mean".
    """
    if not details["loc"]:  # from a check of one setting against another, already worded
        return str(details["ctx"]["error"])
    name = str(details["loc"][0])
    if details["type"] == "unknown_name":  # already worded, see settings/section.py
        return f"{name}: {details['msg']}"
    if details["type"] == "extra_forbidden":
        hint = why_no_setting(name, list(names))
        return f"{name}: no such setting{hint}; `cifar10-accel train --help` lists all"
    reason = details["msg"].removeprefix("Value error, ")
    if details["type"] == "literal_error":
        reason += did_you_mean(str(details["input"]), re.findall("'(.*?)'", details["ctx"]["expected"]))
    return f"{name}: {details['input']!r} {'' if ':' in reason else 'is wrong: '}{reason[0].lower()}{reason[1:]}"
