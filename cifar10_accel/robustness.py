"""How a trained net does on test images that are corrupted, by kind, severity and class."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track
from rich.table import Table

from cifar10_accel.data.cifar10 import Split
from cifar10_accel.data.corruptions import CORRUPTIONS, corrupt
from cifar10_accel.engine import evaluate_pass
from cifar10_accel.errors import OutOfResourcesError
from cifar10_accel.evaluate import Reopened, reopen
from cifar10_accel.launch import on_main
from cifar10_accel.results import labelled
from cifar10_accel.run_folder import locate_checkpoint

Result = dict[str, Any]
SEVERITIES = range(1, 6)


def robustness(source: Path, *, num_images: int | None, seed: int, overrides: dict[str, str]) -> Result:
    """Errors on corrupted test images; also written into the run folder: robustness.json, and a sheet of examples.

    source: as of `evaluate.reopen`; num_images: so many, spread evenly over the test set, None for all; seed: of
    the noise. Errors are shares of the images, 0..1. The mean corruption error is the plain mean over kinds and
    severities: other than in the paper nothing is divided by the errors of another net. All ranks must call
    this; all get the same.
    """
    run = reopen(source, overrides=overrides)
    split = _spread(run.dataset.test, num_images)
    clean = _errors(run, split)
    found = {name: _corrupted(run, split, name, seed=seed) for name in track(
        CORRUPTIONS, "corruptions", disable=not run.accelerator.is_main_process, transient=True)}  # fmt: skip
    by_class = np.mean([classes for kind in found.values() for classes in kind["class_error"]], axis=0)
    result = {
        "dataset": run.dataset.name,
        "step": run.step,
        "num_images": len(split),
        "seed": seed,
        "classes": list(run.dataset.class_names),
        "clean": {"error": clean[0], "class_error": clean[1]},
        "corruptions": found,
        "mean_corruption_error": float(np.mean([kind["error"] for kind in found.values()])),
        "class_mean_corruption_error": by_class.tolist(),
    }
    on_main(run.accelerator, lambda: _write(run, split, result, seed=seed))
    return result


def tables(result: Result) -> list[Table]:
    """Error by corruption and severity, and by class, for a terminal."""
    where = f"{result['num_images']:,} {labelled(result['dataset'])} test images"
    kinds = Table("corruption", *map(str, SEVERITIES), "mean", title=f"error by severity, {where}",
                  title_justify="left", caption_justify="left",
                  caption=f"clean {result['clean']['error']:.2%}, "
                  f"mean corruption error {result['mean_corruption_error']:.2%}")  # fmt: skip
    for name, kind in result["corruptions"].items():
        kinds.add_row(name, *(f"{error:.2%}" for error in kind["error"]), f"{np.mean(kind['error']):.2%}")
    classes = Table("class", "clean", "corrupted", "worst at", title="error by class", title_justify="left")
    for k, name in enumerate(result["classes"]):
        worst = max(result["corruptions"].items(), key=lambda item: np.mean([row[k] for row in item[1]["class_error"]]))
        clean, corrupted = result["clean"]["class_error"][k], result["class_mean_corruption_error"][k]
        classes.add_row(name, f"{clean:.2%}", f"{corrupted:.2%}", worst[0])
    return [kinds, classes]


def folder_of(source: Path) -> Path:
    """The run folder that the numbers of a run or of one of its checkpoints are written into."""
    return locate_checkpoint(source)[0].path


def _spread(split: Split, num_images: int | None) -> Split:
    if num_images is None or num_images >= len(split):
        return split
    return split.take(np.linspace(0, len(split) - 1, num_images).round().astype(np.int64))


def _errors(run: Reopened, split: Split) -> tuple[float, list[float]]:
    """Share of wrong answers, of all images and of those of each class; 0 for a class without images."""
    said, _ = evaluate_pass(run.accelerator, run.net, split, batch_size=run.settings.eval_batch_size)
    errors = 1 - np.nan_to_num(said.class_accuracy(), nan=1.0)
    return 1 - said.accuracy(), errors.tolist()


def _corrupted(run: Reopened, split: Split, name: str, *, seed: int) -> dict[str, Any]:
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


def _write(run: Reopened, split: Split, result: Result, *, seed: int) -> None:
    """robustness.json, and robustness.png: the first image, a row for each kind, a column for each severity."""
    tiles = [[corrupt(split.images[:1], name, strength, seed=seed)[0] for strength in kind.strengths]
             for name, kind in CORRUPTIONS.items()]  # fmt: skip
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in tiles], axis=0)
    try:
        Image.fromarray(sheet).save(run.folder.path / "robustness.png")
        run.folder.write_json("robustness.json", result)
    except OSError as error:
        raise OutOfResourcesError(f"{run.folder.path}: cannot be written ({error.strerror}); make room") from None
