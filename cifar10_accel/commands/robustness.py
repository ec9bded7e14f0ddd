"""Evaluate a trained model on corrupted test images, by kind of corruption, severity and class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from cifar10_accel.commands.evaluate import LoadedRun, load_trained_run
from cifar10_accel.data.corruptions import CORRUPTIONS, corrupt
from cifar10_accel.data.dataset import Split
from cifar10_accel.files import output_of, write_text
from cifar10_accel.formatting import dataset_title
from cifar10_accel.runs.run_folder import locate_checkpoint
from cifar10_accel.tracking.progress import track
from cifar10_accel.training.accelerator import run_on_main
from cifar10_accel.training.evaluation import MAX_ROWS, evaluate_split

Result = dict[str, Any]
SEVERITIES = range(1, 6)


def robustness(source: Path, *, num_images: int | None, seed: int, overrides: dict[str, str]) -> Result:
    """Return errors on corrupted test images, and write them to the run folder: robustness.json and example pictures.

    All ranks must call this; all get the same. Errors are shares of the images, 0..1. The mean corruption error is the
    plain mean over kinds and severities: unlike in the paper nothing is divided by the errors of another model.

    Args:
        source: A run folder or a checkpoint in one.
        num_images: Test images to use, at equal distances; None for all.
        seed: Seed of the noise.
        overrides: Settings that win over those of the run, as in `evaluate.load_trained_run`.
    """
    run = load_trained_run(source, overrides=overrides)
    split = _subset(run.setup.dataset.test, num_images)
    accelerator = run.setup.accelerator
    # Before the evaluation, so that a folder that cannot be written costs no time.
    run_on_main(accelerator, lambda: _write_examples(split, run.folder.path / "robustness.png", seed=seed))
    clean = _errors(run, split)
    is_main = accelerator.is_main_process
    found = {
        name: _corrupted(run, split, name, seed=seed)
        for name in track(CORRUPTIONS, "corruptions", num_steps=len(CORRUPTIONS), is_main=is_main)
    }
    by_class = np.mean([classes for kind in found.values() for classes in kind["class_error"]], axis=0)
    result = {
        "dataset": run.setup.dataset.name,
        "step": run.step,
        "num_images": len(split),
        "seed": seed,
        "classes": list(run.setup.dataset.class_names),
        "class_images": np.bincount(split.labels, minlength=len(run.setup.dataset.class_names)).tolist(),
        "clean": {"error": clean[0], "class_error": clean[1]},
        "corruptions": found,
        "mean_corruption_error": float(np.mean([kind["error"] for kind in found.values()])),
        "class_mean_corruption_error": by_class.tolist(),
    }
    run_on_main(accelerator, lambda: _write_result(result, run.folder.path / "robustness.json"))
    return result


def tables(result: Result) -> list[Table]:
    """Return a table of errors by corruption and severity, and one by class."""
    where = f"{result['num_images']:,} {dataset_title(result['dataset'])} test images"
    kinds = Table(
        "corruption",
        *map(str, SEVERITIES),
        "mean",
        title=f"error by severity, {where}",
        title_justify="left",
        caption_justify="left",
        caption=f"clean {result['clean']['error']:.2%}, mean corruption error {result['mean_corruption_error']:.2%}",
    )
    for name, kind in result["corruptions"].items():
        kinds.add_row(name, *(f"{error:.2%}" for error in kind["error"]), f"{np.mean(kind['error']):.2%}")
    classes = Table("class", "clean", "corrupted", "worst at", title="error by class", title_justify="left")
    shown = list(range(len(result["classes"])))
    if len(shown) > MAX_ROWS:
        errors = result["class_mean_corruption_error"]
        shown = sorted(shown, key=lambda k: -errors[k] if result["class_images"][k] else 1)[:MAX_ROWS]
        classes.caption = f"the {MAX_ROWS} of {len(errors)} classes with the highest error"
    for k in shown:
        name = result["classes"][k]
        if not result["class_images"][k]:
            classes.add_row(name, "-", "-", "no images")
            continue
        worst = max(result["corruptions"].items(), key=lambda item: np.mean([row[k] for row in item[1]["class_error"]]))
        clean, corrupted = result["clean"]["class_error"][k], result["class_mean_corruption_error"][k]
        classes.add_row(name, f"{clean:.2%}", f"{corrupted:.2%}", worst[0])
    return [kinds, classes]


def folder_of(source: Path) -> Path:
    """Return the run folder that the results of a run or of one of its checkpoints are written to."""
    return locate_checkpoint(source)[0].path


def _subset(split: Split, num_images: int | None) -> Split:
    if num_images is None or num_images >= len(split):
        return split
    return split.take(np.linspace(0, len(split) - 1, num_images).round().astype(np.int64))


def _errors(run: LoadedRun, split: Split) -> tuple[float, list[float]]:
    """Return the error, 0..1, of all images and of each class; 0 for a class without images."""
    setup = run.setup
    predictions, _ = evaluate_split(
        setup.accelerator,
        run.model,
        split,
        batch_size=setup.settings.eval_batch_size,
        image_format=setup.dataset.image_format,
    )
    errors = 1 - np.nan_to_num(predictions.class_accuracy(), nan=1.0)
    return 1 - predictions.accuracy(), errors.tolist()


def _corrupted(run: LoadedRun, split: Split, name: str, *, seed: int) -> dict[str, Any]:
    kind = CORRUPTIONS[name]
    errors = [
        _errors(run, Split(corrupt(split.images, name, strength, seed=seed), split.labels))
        for strength in kind.strengths
    ]
    return {
        "parameter": kind.parameter,
        "strengths": list(kind.strengths),
        "error": [error for error, _ in errors],
        "class_error": [classes for _, classes in errors],
    }


def _write_examples(split: Split, path: Path, *, seed: int) -> None:
    """Write a picture of the first image: a row per corruption, a column per severity."""
    tiles = [
        [corrupt(split.images[:1], name, strength, seed=seed)[0] for strength in kind.strengths]
        for name, kind in CORRUPTIONS.items()
    ]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in tiles], axis=0)
    rgb = sheet if sheet.shape[2] == 3 else sheet.repeat(3, axis=2)
    with output_of(None, path):
        Image.fromarray(rgb).save(path)


def _write_result(result: Result, path: Path) -> None:
    with output_of(None, path):
        write_text(path, json.dumps(result, indent=1) + "\n")
