"""Compare existing runs: settings, seeds, curves, and predictions of the first two image by image."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cifar10_accel.commands.statistics import SampleStats, mcnemar
from cifar10_accel.errors import InputError, UserError
from cifar10_accel.files import output_of
from cifar10_accel.formatting import dataset_title, format_p_value, format_seconds, format_value
from cifar10_accel.report.compare_page import ComparedRun, Comparison, letter, write_compare_page
from cifar10_accel.runs.predictions import Predictions, changes
from cifar10_accel.runs.saved_run import SavedRun

NOT_COMPARED = ("run_dir", "run_name")  # settings that differ between any two runs


def compare(paths: Sequence[Path], *, out: Path, data_dir: Path | None = None) -> Comparison:
    """Compare two runs or more and write the page.

    Pictures need the data set; nothing is downloaded.

    Args:
        paths: Run folders; the first two are compared image by image.
        out: File for the page.
        data_dir: Folder of the data set; None: by the environment, else where the first run had it.

    Raises:
        InputError: A folder is no run, has no predictions, or was tested on another set than the first.
        OutOfResourcesError: The disk is full.
        SettingsError: The page cannot be written for another reason.
    """
    runs = [SavedRun.load(path, data_dir=data_dir) for path in paths]
    tests = [_predictions(run) for run in runs]
    for run, test in zip(runs[1:], tests[1:], strict=True):
        _require_same_test_set(runs[0], tests[0], run, test)
    comparison, images = _compare(runs, tests), None
    if not comparison.unpaired_reason:
        try:
            images = runs[0].dataset().test.images
        except UserError as error:
            comparison = replace(comparison, missing=(*comparison.missing, f"no pictures: {error}"))
    with output_of("out", out):
        write_compare_page(out, comparison, images)
    return comparison


def tables(comparison: Comparison) -> list[Table]:
    """Return the runs, and the settings that differ, for a terminal."""
    letters = comparison.letters()
    title = f"{len(comparison.runs[0].test.label):,} {dataset_title(comparison.dataset)} test images"
    results = Table("run", "folder", "test accuracy", "with TTA", "training time", title=title, title_justify="left")
    for name, run in zip(letters, comparison.runs, strict=True):
        tta = run.summary.get("test/accuracy_tta")
        results.add_row(
            name,
            run.name,
            f"{run.test.accuracy():.2%}",
            "-" if tta is None else f"{tta:.2%}",
            format_seconds(run.summary.get("train_seconds")),
        )
    settings = Table("setting that differs", *letters)
    for name, values in comparison.differences.items():
        settings.add_row(name, *map(format_value, values))
    return [results, settings] if comparison.differences else [results]


def summary_lines(comparison: Comparison) -> list[str]:
    """Return the change of single images and the statistics over seeds, one line each."""
    if comparison.unpaired_reason:
        lines = [comparison.unpaired_reason]
    else:
        fixed, broken = len(comparison.fixed), len(comparison.broken)
        p = format_p_value(comparison.p_value)
        equals = "" if p.startswith("<") else "= "
        lines = [f"B fixes {fixed:,} images and breaks {broken:,}; McNemar's exact p {equals}{p}"]
    return lines + [f"{runs} differ only in seed: {statistics}" for runs, statistics in comparison.seeds.items()]


def _compare(runs: Sequence[SavedRun], tests: Sequence[Predictions]) -> Comparison:
    unpaired_reason = _unpaired_reason(runs[0], runs[1])
    fixed, broken = ([], []) if unpaired_reason else changes(tests[0], tests[1])
    return Comparison(
        runs=[
            ComparedRun(name=name, summary=run.summary, metrics=run.metrics, test=test)
            for name, run, test in zip(_names(runs), runs, tests, strict=True)
        ],
        dataset=runs[0].settings.dataset,
        class_names=runs[0].class_names(),
        differences=_differences(runs),
        fixed=fixed,
        broken=broken,
        p_value=math.nan if unpaired_reason else mcnemar(len(fixed), len(broken)),
        unpaired_reason=unpaired_reason,
        seeds=_seed_statistics(runs, tests),
        missing=[f"{run.folder.name()}: {reason}" for run in runs for reason in run.missing],
    )


def _predictions(run: SavedRun) -> Predictions:
    if run.test is None:
        raise InputError(f"{run.folder.path}: no usable predictions.npz there; give runs that have finished")
    return run.test


def _require_same_test_set(first: SavedRun, wanted: Predictions, other: SavedRun, found: Predictions) -> None:
    difference = _difference(first, wanted, other, found)
    if difference:
        raise InputError(
            f"{other.folder.path}: tested on another set than {first.folder.path} ({difference}); "
            "compare runs with the same test images"
        )


def _difference(first: SavedRun, wanted: Predictions, other: SavedRun, found: Predictions) -> str:
    """Return what shows that two runs were tested on different images; empty if nothing does."""
    facts = [
        ("data sets", dataset_title(first.settings.dataset), dataset_title(other.settings.dataset)),
        ("images", f"{len(wanted.label):,}", f"{len(found.label):,}"),
        ("classes", str(wanted.probabilities.shape[1]), str(found.probabilities.shape[1])),
        *(("classes", *pair) for pair in zip(first.recorded_classes(), other.recorded_classes(), strict=False)),
    ]
    for what, one, another in facts:
        if one != another:
            return f"{what}: {one} and {another}"
    if not (np.array_equal(wanted.index, found.index) and np.array_equal(wanted.label, found.label)):
        return "the images have other classes"
    digests = {run.environment.get("test_images") for run in (first, other)} - {None}  # early versions have none
    is_own = first.settings.is_own_dataset
    return "the images of the same classes are others" if is_own and len(digests) > 1 else ""


def _unpaired_reason(first: SavedRun, second: SavedRun) -> str:
    if first.settings.dataset == "synthetic" and first.settings.seed != second.settings.seed:
        return "Not compared image by image: the synthetic test images depend on the seed, so each run has its own."
    return ""


def _names(runs: Sequence[SavedRun]) -> list[str]:
    """Return the folders' names, or their paths if two have the same name."""
    names = [run.folder.name() for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder.path) for run in runs]


def _differences(runs: Sequence[SavedRun]) -> dict[str, tuple[Any, ...]]:
    dumps = [run.settings.model_dump(mode="json") for run in runs]
    values = {name: tuple(dump[name] for dump in dumps) for name in dumps[0] if name not in NOT_COMPARED}
    return {name: given for name, given in values.items() if any(value != given[0] for value in given)}


def _seed_statistics(runs: Sequence[SavedRun], tests: Sequence[Predictions]) -> dict[str, str]:
    """Return the statistics of each group of runs with the same settings and different seeds."""
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        settings = run.settings.weight_affecting() | {"seed": None, "max_steps": run.settings.max_steps}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(number)
    return {
        ", ".join(letter(number) for number in group): SampleStats.of(
            [tests[number].accuracy() for number in group]
        ).summary()
        for group in groups.values()
        if len({runs[number].settings.seed for number in group}) == len(group) > 1
    }
