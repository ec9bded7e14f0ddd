"""Filters and order of listed runs: `accuracy>0.9`, `recipe=cpu*`, `-date`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.formatting import format_value
from cifar10_accel.runs.listing import FIELDS, ListedRun
from cifar10_accel.settings import Settings

NEWEST_FIRST = ("-date",)
TEXT_FIELDS = ("name", "recipe", "dataset", "model", "state", "date")  # < and > compare their text


@dataclass(frozen=True)
class Filter:
    """A condition on a field or setting of a run."""

    name: str
    operator: str  # = != < <= > >=
    wanted: str

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read a condition such as `accuracy>0.9`, `accuracy>=90%`, `recipe=cpu*` or `max_lr!=0.4`.

        Raises:
            SettingsError: It has another form, the field does not exist, or < and > are given no number.
        """
        parts = re.fullmatch(r"\s*([\w-]+)\s*(<=|>=|!=|==?|<|>)\s*(.*?)\s*", text)
        if parts is None:
            raise SettingsError(f"filter: {text!r} is no condition; give one such as recipe=cpu or 'accuracy>0.9'")
        name, operator, wanted = _known_field(parts[1], option="filter"), parts[2].replace("==", "="), parts[3]
        if operator not in ("=", "!=") and name not in TEXT_FIELDS and _number(wanted) is None:
            raise SettingsError(f"filter: {text!r} compares {name} with {wanted!r}; give a number, such as 0.9 or 90%")
        return cls(name, operator, wanted)

    def accepts(self, run: ListedRun) -> bool:
        """Return whether the run fulfils the condition. A missing value is not less or greater than any other."""
        seen = run.value(self.name)
        if self.name == "date" and seen is not None and not set("*?[") & set(self.wanted):
            seen = _text(seen)[: len(self.wanted)]  # a shortened date is the whole of that day, month or year
        if self.operator in ("=", "!="):
            return self._equals(seen) == (self.operator == "=")
        if self.name in TEXT_FIELDS:
            return seen is not None and _compares(self.operator, _text(seen), self.wanted)
        number = _number(self.wanted)
        is_number = isinstance(seen, int | float) and not isinstance(seen, bool)
        return is_number and number is not None and _compares(self.operator, seen, number)

    def _equals(self, seen: Any) -> bool:
        number = _number(self.wanted)
        if isinstance(seen, int | float) and not isinstance(seen, bool) and number is not None:
            return seen == number
        text = _text(seen)
        return text == self.wanted or fnmatchcase(text, self.wanted)  # a name may contain the signs of a pattern


def select(runs: Sequence[ListedRun], *, filters: Sequence[str], order: Sequence[str]) -> list[ListedRun]:
    """Return the runs that fulfil all filters, sorted by the first field of the order, then by the next.

    Args:
        runs: All runs.
        filters: Conditions (`Filter.parse`).
        order: Names of fields or settings, with a minus in front for descending order; none: the newest first.

    Raises:
        SettingsError: A filter or a field is wrong.
    """
    conditions = [Filter.parse(text) for text in filters]
    found = sorted((run for run in runs if all(condition.accepts(run) for condition in conditions)), key=_natural_name)
    for key in reversed(order or NEWEST_FIRST):
        name = _known_field(key.removeprefix("-"), option="sort")
        present = [run for run in found if run.value(name) is not None]
        present.sort(key=lambda run: _sort_key(run.value(name)), reverse=key.startswith("-"))
        found = present + [run for run in found if run.value(name) is None]
    return found


def _known_field(given: str, *, option: str) -> str:
    name, known = given.replace("-", "_"), list(dict.fromkeys([*FIELDS, *Settings.model_fields]))
    if name not in known:
        hint = did_you_mean(name, known) or f"; give one of {', '.join(FIELDS)}, or a setting"
        raise SettingsError(f"{option}: a run has no {given!r}{hint}")
    return name


def _compares(operator: str, seen: Any, wanted: Any) -> bool:
    results = {"<": seen < wanted, "<=": seen <= wanted, ">": seen > wanted, ">=": seen >= wanted}
    return bool(results[operator])


def _number(text: str) -> float | None:
    try:  # decimal: 94% is 0.94, the number that a stored accuracy is compared with, and not 0.9400000000000001
        return float(Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1))
    except (ArithmeticError, ValueError):
        return None


def _text(value: Any) -> str:
    return value.isoformat(sep=" ", timespec="minutes")[:16] if hasattr(value, "isoformat") else format_value(value)


def _sort_key(value: Any) -> tuple[int, Any]:
    """Return a key that orders values of different types: numbers first, then texts with their numbers in order."""
    if isinstance(value, int | float):
        return 0, value
    return (1, value.timestamp()) if hasattr(value, "timestamp") else (2, _natural(format_value(value)))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Return the parts of a text so that seed-2 sorts before seed-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text)]


def _natural_name(run: ListedRun) -> list[tuple[int, int, str]]:
    return _natural(run.name)
