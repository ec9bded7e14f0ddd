"""The part of a run's page that shows how the net does on corrupted images."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cifar10_accel.pages.charts import bars


@dataclass(frozen=True, kw_only=True)
class Spoilt:
    """A cell of the table: an example, and the error; `place` is (column, row) in the sheet of examples."""

    place: tuple[int, int]
    title: str
    error: float
    part: int  # how strong its colour is, in percent


def of_robustness(result: Mapping[str, Any], sheet: bytes | None) -> dict[str, Any] | None:
    """What the template shows of a robustness.json and the PNG beside it; None if it is not as it should be."""
    try:
        kinds = result["corruptions"]
        errors = [error for kind in kinds.values() for error in kind["error"]]
        assert all(math.isfinite(error) for error in errors)
        return {
            "result": result,
            "num_columns": max(len(kind["error"]) for kind in kinds.values()),
            "rows": {
                name: [_cell(kind, column, row, max(errors)) for column in range(len(kind["error"]))]
                for row, (name, kind) in enumerate(kinds.items())
            },
            "means": {name: sum(kind["error"]) / len(kind["error"]) for name, kind in kinds.items()},
            "classes": _class_bars(result),
            "sheet": None if sheet is None else "data:image/png;base64," + base64.b64encode(sheet).decode(),
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError):
        return None


def _cell(kind: Mapping[str, Any], column: int, row: int, worst: float) -> Spoilt:
    error = kind["error"][column]
    return Spoilt(
        place=(column, row), title=f"{kind['parameter']}: {kind['strengths'][column]:g}", error=error,
        part=round(70 * error / worst) if worst else 0,
    )  # fmt: skip


def _class_bars(result: Mapping[str, Any]) -> Markup:
    errors, clean = result["class_mean_corruption_error"], result["clean"]["class_error"]
    notes = [f"{error:.2%} on clean images" for error in clean]
    return bars(result["classes"], errors, notes, title="Mean corruption error by class")
