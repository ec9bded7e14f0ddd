"""What is said about a setting that is wrong."""

import os
from collections.abc import Collection
from typing import Any

from cifar10_accel.errors import SettingsError, did_you_mean

ENV_PREFIX = "CIFAR10_ACCEL_"


def in_one_line(details: Any, names: Collection[str]) -> str:
    """One pydantic error as `name: value seen, what is allowed`; `names` are the settings there are."""
    if not details["loc"]:  # the checks of one setting against another, already worded
        return str(details["ctx"]["error"])
    name = str(details["loc"][0])
    if details["type"] == "extra_forbidden":
        hint = did_you_mean(name, list(names))
        return f"{name}: no such setting{hint}; `cifar10-accel train --help` lists all"
    reason = details["msg"].removeprefix("Value error, ")
    return f"{name}: {details['input']!r} {'' if ':' in reason else 'is wrong: '}{reason[0].lower()}{reason[1:]}"


def refuse_unknown_environment(names: Collection[str]) -> None:
    """Raises `SettingsError` for a variable that begins like a setting's and is none of these."""
    for variable in os.environ:
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and name not in names:
            hint = did_you_mean(name, list(names))
            raise SettingsError(f"{variable}: no such setting{hint}; unset the variable or mend its name")
