"""Compares runs that were made before: settings, seeds, curves, and image by image the first two."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cifar10_accel.errors import InputError, OutOfResourcesError, UserError
from cifar10_accel.pages.compare import RunShown, letter, write_compare_page
from cifar10_accel.pages.page import duration, labelled, word
from cifar10_accel.past_run import PastRun
from cifar10_accel.predictions import Predictions, changes
from cifar10_accel.spread import Spread, mcnemar

PLACES = ("run_dir", "run_name")  # settings that differ in any two runs and say nothing


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What comparing came to; rows are of the test set, values in the order of the runs."""

    runs: tuple[RunShown, ...]
    dataset: str
    differences: dict[str, tuple[Any, ...]]  # settings that are not the same in all runs
    fixed: list[int]  # rows that only the second run has right
    broken: list[int]  # rows that only the first has right
    p_value: float  # McNemar's; nan where the two are not comparable image by image
    unpaired: str  # why they are not; empty if they are
    seeds: dict[str, Spread]  # test accuracy of runs that differ only in seed, by their letters


def compare(paths: Sequence[Path], *, out: Path) -> Comparison:
    """Compares two runs or more, writes the page and returns what it says.

    Raises `InputError` for a folder that is no run, has no predictions, or was tested on another set than the
    first; `OutOfResourcesError` if the page cannot be written. Pictures need the data set; nothing is downloaded.
    """
    past = [PastRun.read(path) for path in paths]
    tests = [_predictions(run) for run in past]
    for run, test in zip(past[1:], tests[1:], strict=True):
        _require_same_test_set(past[0], tests[0], run, test)
    comparison = _comparison(past, tests)
    try:
        _write(comparison, past, out)
    except OSError as error:
        raise OutOfResourcesError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    return comparison


def tables(comparison: Comparison) -> list[Table]:
    """The runs, and the settings that differ, for a terminal."""
    letters = [letter(number) for number in range(len(comparison.runs))]
    title = f"{len(comparison.runs[0].test.label):,} {labelled(comparison.dataset)} test images"
    results = Table("run", "folder", "test accuracy", "with TTA", "training time", title=title, title_justify="left")
    for name, run in zip(letters, comparison.runs, strict=True):
        tta = run.summary.get("test/accuracy_tta")
        results.add_row(name, run.name, f"{run.test.accuracy():.2%}", "-" if tta is None else f"{tta:.2%}",
                        duration(run.summary.get("train_seconds")))  # fmt: skip
    settings = Table("setting that differs", *letters)
    for name, values in comparison.differences.items():
        settings.add_row(name, *map(word, values))
    return [results, settings] if comparison.differences else [results]


def in_words(comparison: Comparison) -> list[str]:
    """What became of single images and over seeds, a line each."""
    if comparison.unpaired:
        lines = [comparison.unpaired]
    else:
        fixed, broken = len(comparison.fixed), len(comparison.broken)
        lines = [f"B fixes {fixed:,} images and breaks {broken:,}; McNemar's exact p = {comparison.p_value:.3g}"]
    return lines + [f"{runs} differ only in seed: {spread.in_words()}" for runs, spread in comparison.seeds.items()]


def _comparison(past: Sequence[PastRun], tests: Sequence[Predictions]) -> Comparison:
    unpaired = _why_unpaired(past[0], past[1])
    fixed, broken = ([], []) if unpaired else changes(tests[0], tests[1])
    names = _names(past)
    return Comparison(
        runs=tuple(
            RunShown(name=name, summary=run.summary, lines=run.lines, test=test)
            for name, run, test in zip(names, past, tests, strict=True)
        ),
        dataset=past[0].settings.dataset,
        differences=_differences(past),
        fixed=fixed,
        broken=broken,
        p_value=float("nan") if unpaired else mcnemar(len(fixed), len(broken)),
        unpaired=unpaired,
        seeds=_seeds(past, tests),
    )


def _write(comparison: Comparison, past: Sequence[PastRun], out: Path) -> None:
    missing, images = [f"{run.folder.name()}: {said}" for run in past for said in run.missing], None
    if not comparison.unpaired:
        try:
            images = past[0].dataset().test.images
        except UserError as error:
            missing.append(str(error))
    write_compare_page(
        out, runs=comparison.runs, dataset=comparison.dataset, differences=comparison.differences,
        class_names=past[0].class_names(), fixed=comparison.fixed, broken=comparison.broken,
        p_value=comparison.p_value, unpaired=comparison.unpaired, images=images, missing=missing,
        seeds={runs: spread.in_words() for runs, spread in comparison.seeds.items()},
    )  # fmt: skip


def _predictions(run: PastRun) -> Predictions:
    if run.test is None:
        raise InputError(f"{run.folder.path}: no usable predictions.npz there; give runs that have finished")
    return run.test


def _require_same_test_set(first: PastRun, wanted: Predictions, other: PastRun, found: Predictions) -> None:
    same = (
        first.settings.dataset == other.settings.dataset
        and wanted.probabilities.shape == found.probabilities.shape
        and np.array_equal(wanted.index, found.index)
        and np.array_equal(wanted.label, found.label)
    )
    if not same:
        sets = (
            f"{labelled(run.settings.dataset)}, {len(test.label):,} images"
            for run, test in ((first, wanted), (other, found))
        )
        raise InputError(
            f"{other.folder.path}: tested on another set than {first.folder.path} ({' and '.join(sets)}); "
            "compare runs with the same test images"
        )


def _why_unpaired(first: PastRun, second: PastRun) -> str:
    if first.settings.dataset == "synthetic" and first.settings.seed != second.settings.seed:
        return "Not compared image by image: the seed draws the synthetic test images, so each run has its own."
    return ""


def _names(past: Sequence[PastRun]) -> list[str]:
    """The folders' own names, or their paths where two have the same name."""
    names = [run.folder.name() for run in past]
    return names if len(set(names)) == len(names) else [str(run.folder.path) for run in past]


def _differences(past: Sequence[PastRun]) -> dict[str, tuple[Any, ...]]:
    dumps = [run.settings.model_dump(mode="json") for run in past]
    values = {name: tuple(dump[name] for dump in dumps) for name in dumps[0] if name not in PLACES}
    return {name: given for name, given in values.items() if any(value != given[0] for value in given)}


def _seeds(past: Sequence[PastRun], tests: Sequence[Predictions]) -> dict[str, Spread]:
    """Of each group of runs with the same settings and several seeds."""
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(past):
        settings = run.settings.math() | {"seed": None, "max_steps": run.settings.max_steps}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(number)
    return {
        ", ".join(letter(number) for number in group): Spread.of([tests[number].accuracy() for number in group])
        for group in groups.values()
        if len({past[number].settings.seed for number in group}) == len(group) > 1
    }
