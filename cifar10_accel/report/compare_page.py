"""compare.html: differences between runs in settings, results and predictions of single images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar10_accel.formatting import format_value
from cifar10_accel.report.curves import Metrics, compared_curves
from cifar10_accel.report.images import ImageEntry, image_entries
from cifar10_accel.report.page import write_page
from cifar10_accel.report.sprite import Pixels, make_sprite
from cifar10_accel.runs.predictions import Predictions

MAX_IMAGES = 280  # in each of the lists fixed and broken
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A finished run with its predictions for the test set."""

    name: str
    summary: Mapping[str, Any]
    metrics: Metrics
    test: Predictions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs or more on the same test set; the first two are compared image by image.

    Rows are of the test predictions; values are in the order of the runs.
    """

    runs: Sequence[ComparedRun]
    dataset: str
    class_names: Sequence[str]
    differences: Mapping[str, Sequence[Any]]  # settings that are not the same in all runs
    fixed: Sequence[int]  # rows that only the second run classifies correctly
    broken: Sequence[int]  # rows that only the first run classifies correctly
    p_value: float  # of McNemar's test; nan if the runs are not compared image by image
    unpaired_reason: str  # why the first two are not compared image by image; empty if they are
    seeds: Mapping[str, str]  # statistics of the test accuracy of runs that differ only in seed, by their letters
    missing: Sequence[str] = ()  # sentences about what the run folders lack

    def letters(self) -> list[str]:
        """Return a short name for each run."""
        return [letter(number) for number in range(len(self.runs))]


def letter(number: int) -> str:
    """Return the short name of the run with this number, from 0: A, B, ... Z, 27, 28, ..."""
    return LETTERS[number] if number < len(LETTERS) else str(number + 1)


def write_compare_page(path: Path, comparison: Comparison, images: Pixels | None) -> None:
    """Write the page of a comparison.

    Args:
        path: File to write.
        comparison: The runs and their differences.
        images: The whole test set, (N, 32, 32, 3) uint8; None if it is not available.

    Raises:
        OSError: The file cannot be written.
    """
    runs, letters = comparison.runs, comparison.letters()
    fixed, broken = comparison.fixed[:MAX_IMAGES], comparison.broken[:MAX_IMAGES]
    first, second = runs[0].test, runs[1].test
    sprite = make_sprite(images, [int(first.index[row]) for row in [*fixed, *broken]]) if images is not None else None

    def before_and_after(rows: Sequence[int]) -> list[tuple[ImageEntry, ImageEntry]]:
        before, after = (image_entries(test, rows, comparison.class_names, sprite) for test in (first, second))
        return list(zip(before, after, strict=True))

    write_page(
        path,
        "compare",
        runs=runs,
        letters=letters,
        dataset=comparison.dataset,
        unpaired_reason=comparison.unpaired_reason,
        p_value=comparison.p_value,
        differences={name: list(map(format_value, values)) for name, values in comparison.differences.items()},
        curves=compared_curves({f"{a}: {run.name}": run.metrics for a, run in zip(letters, runs, strict=True)}),
        class_rows=_class_rows(comparison),
        fixed=before_and_after(fixed),
        num_fixed=len(comparison.fixed),
        broken=before_and_after(broken),
        num_broken=len(comparison.broken),
        sprite=sprite,
        seeds=comparison.seeds,
        missing=comparison.missing,
    )


def _class_rows(comparison: Comparison) -> list[tuple[str, list[float], float]]:
    """Return each class with its accuracy in every run, and the gain of the second run over the first."""
    accuracies = zip(*(run.test.class_accuracy().tolist() for run in comparison.runs), strict=True)
    return [(name, list(row), row[1] - row[0]) for name, row in zip(comparison.class_names, accuracies, strict=True)]
