"""compare.html: how runs differ, in what was set, what came of it, and on which images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar10_accel.pages.curves import Lines, curves_together
from cifar10_accel.pages.images import Shown, shown
from cifar10_accel.pages.page import word, write_page
from cifar10_accel.pages.sprite import Pixels, sprite
from cifar10_accel.predictions import Predictions

MOST_IMAGES = 280  # fixed, and as many broken
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class RunShown:
    """A run as the page shows it; class accuracies and predictions are for the test set."""

    name: str
    summary: Mapping[str, Any]
    lines: Lines
    test: Predictions


def letter(number: int) -> str:
    """What a run is called for short: A, B, ... Z, then by its number from 1."""
    return LETTERS[number] if number < len(LETTERS) else str(number + 1)


def write_compare_page(
    path: Path,
    *,
    runs: Sequence[RunShown],
    dataset: str,
    differences: Mapping[str, Sequence[Any]],
    class_names: Sequence[str],
    fixed: Sequence[int],
    broken: Sequence[int],
    p_value: float,
    unpaired: str,
    seeds: Mapping[str, str],
    images: Pixels | None,
    missing: Sequence[str] = (),
) -> None:
    """Writes the page of two runs or more, tested on the same set.

    differences: the settings that are not the same in all, a value per run; fixed, broken: rows that only the
    second, or only the first run has right; p_value: McNemar's; unpaired: why the first two cannot be compared
    image by image, empty if they can; seeds: the spread in words of each group of runs that differ only in seed.
    Raises OSError if the file cannot be written.
    """
    shown_rows = [*fixed[:MOST_IMAGES], *broken[:MOST_IMAGES]]
    first, second = runs[0].test, runs[1].test
    pictures = sprite(images, [int(first.index[row]) for row in shown_rows]) if images is not None else None

    def pairs(rows: Sequence[int]) -> list[tuple[Shown, Shown]]:
        return list(zip(*(shown(test, rows[:MOST_IMAGES], class_names, pictures) for test in (first, second)),
                        strict=True))  # fmt: skip

    letters = [letter(number) for number in range(len(runs))]
    write_page(
        path, "compare", runs=runs, letters=letters, dataset=dataset, unpaired=unpaired, p_value=p_value,
        differences={name: list(map(word, values)) for name, values in differences.items()},
        curves=curves_together({f"{a}: {run.name}": run.lines for a, run in zip(letters, runs, strict=True)}),
        class_rows=_class_rows(runs, class_names), fixed=pairs(fixed), num_fixed=len(fixed), broken=pairs(broken),
        num_broken=len(broken), pictures=pictures, seeds=seeds, missing=missing,
    )  # fmt: skip


def _class_rows(runs: Sequence[RunShown], class_names: Sequence[str]) -> list[tuple[str, list[float], float]]:
    """Each class with its accuracy in every run, and what the second gained on the first."""
    accuracies = [run.test.class_accuracy().tolist() for run in runs]
    return [
        (name, list(row), row[1] - row[0]) for name, row in zip(class_names, zip(*accuracies, strict=True), strict=True)
    ]
