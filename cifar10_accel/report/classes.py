"""Classes and confusion sections of a run's page: error of each class, confusion matrix or list of confusions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from cifar10_accel.report.charts import bar_chart
from cifar10_accel.runs.predictions import Predictions

MAX_MATRIX = 20  # classes; with more, the cells are too small to read, and the pairs are listed
MAX_PAIRS = 400  # confusions in the list


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the confusion matrix; `tint` is the strength of its colour, in percent."""

    name: str
    title: str
    count: int
    is_correct: bool
    tint: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Images of one class that were predicted as another."""

    cell: Cell
    label_name: str
    predicted_name: str
    share: float  # of the images of the true class


def classes_context(test: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the values that the template shows: a chart, and the matrix or, with many classes, a list of pairs."""
    has_matrix = len(class_names) <= MAX_MATRIX
    pairs = [] if has_matrix else _most_frequent_confusions(test, class_names)
    return {
        "classes": _class_chart(test, class_names),
        "matrix": _confusion_cells(test, class_names) if has_matrix else None,
        "confusions": pairs[:MAX_PAIRS],
        "num_confusions": len(pairs),
    }


def _class_chart(test: Predictions, class_names: Sequence[str]) -> Markup:
    """Return the error of each class, the highest first, with its most frequent incorrect prediction."""
    counts = test.confusion_matrix()
    errors = 1 - test.class_accuracy()
    order = np.argsort(-np.nan_to_num(errors, nan=-1.0), kind="stable").tolist()
    notes = []
    for label in order:
        others = counts[label].copy()
        others[label] = 0
        mistake, total = int(others.argmax()), int(others.sum())
        images = f"{total:,} of {counts[label].sum():,} images"
        most = f", {others[mistake]:,} predicted as {class_names[mistake]}" if total else ""
        notes.append(images + most)
    names = [class_names[label] for label in order]
    return bar_chart(names, [float(errors[label]) for label in order], notes, title="Error by class")


def _confusion_cells(test: Predictions, class_names: Sequence[str]) -> list[list[Cell]]:
    """Return the confusion matrix, rows true; correct and incorrect predictions have separate colour scales."""
    counts = test.confusion_matrix()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    worst = max((float(shares[i, j]) for i, j in zip(*counts.nonzero(), strict=True) if i != j), default=1.0)
    return [
        [
            _cell(i, j, int(count), class_names, tint=float(shares[i, j]) / (1.0 if i == j else worst))
            for j, count in enumerate(row)
        ]
        for i, row in enumerate(counts)
    ]


def _most_frequent_confusions(test: Predictions, class_names: Sequence[str]) -> list[Confusion]:
    counts = test.confusion_matrix()
    sizes = counts.sum(axis=1)
    pairs = [(int(counts[i, j]), int(i), int(j)) for i, j in zip(*counts.nonzero(), strict=True) if i != j]
    return [
        Confusion(
            cell=_cell(i, j, count, class_names, tint=0.0),
            label_name=class_names[i],
            predicted_name=class_names[j],
            share=count / int(sizes[i]),
        )
        for count, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))
    ]


def _cell(i: int, j: int, count: int, class_names: Sequence[str], *, tint: float) -> Cell:
    title = f"{class_names[i]} predicted as {class_names[j]}" if i != j else f"{class_names[i]}, correct"
    return Cell(name=f"{i}-{j}", count=count, is_correct=i == j, title=title, tint=round(100 * tint))
