"""Robustness section of a run's page: errors on corrupted test images."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from PIL import Image

from cifar10_accel.report.charts import bar_chart
from cifar10_accel.report.sprite import zoom

MAX_TINT = 70  # percent of the colour that the cell with the highest error has


@dataclass(frozen=True, kw_only=True)
class CorruptionCell:
    """A cell of the table: an example, and the error; `place` is (column, row) in the sheet of examples."""

    place: tuple[int, int]
    title: str
    error: float
    tint: int  # strength of the cell's colour, in percent


def robustness_context(result: Mapping[str, Any], sheet: bytes | None) -> dict[str, Any] | None:
    """Return the values that the template shows; None if the result does not have the expected form.

    Args:
        result: Content of robustness.json.
        sheet: Content of robustness.png: examples, a row for each corruption, a column for each severity.
    """
    try:
        kinds = result["corruptions"]
        errors = [error for kind in kinds.values() for error in kind["error"]]
        if not all(math.isfinite(error) for error in errors):
            return None
        num_columns = max(len(kind["error"]) for kind in kinds.values())
        side = 32 if sheet is None else Image.open(io.BytesIO(sheet)).width // num_columns
        return {
            "result": result,
            "num_columns": num_columns,
            "side": side,
            "zoom": zoom(side),
            "rows": {
                name: [_cell(kind, column, row, max(errors)) for column in range(len(kind["error"]))]
                for row, (name, kind) in enumerate(kinds.items())
            },
            "means": {name: sum(kind["error"]) / len(kind["error"]) for name, kind in kinds.items()},
            "classes": _class_chart(result),
            "sheet": None if sheet is None else "data:image/png;base64," + base64.b64encode(sheet).decode(),
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _cell(kind: Mapping[str, Any], column: int, row: int, worst: float) -> CorruptionCell:
    error = kind["error"][column]
    return CorruptionCell(
        place=(column, row),
        title=f"{kind['parameter']}: {kind['strengths'][column]:g}",
        error=error,
        tint=round(MAX_TINT * error / worst) if worst else 0,
    )


def _class_chart(result: Mapping[str, Any]) -> Markup:
    errors, clean = result["class_mean_corruption_error"], result["clean"]["class_error"]
    has_images = [count > 0 for count in result.get("class_images", [1] * len(errors))]
    notes = [
        f"{error:.2%} on clean images" if known else "no images" for error, known in zip(clean, has_images, strict=True)
    ]
    errors = [error if known else math.nan for error, known in zip(errors, has_images, strict=True)]
    return bar_chart(result["classes"], errors, notes, title="Mean corruption error by class")
