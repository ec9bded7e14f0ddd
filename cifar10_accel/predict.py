"""Predicts the class of image files with a trained run."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from cifar10_accel import classifier
from cifar10_accel.data.folder import read_image
from cifar10_accel.errors import InputError

BATCH = 256  # images in memory at a time


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image file, or what is wrong with the file."""

    path: Path
    classes: tuple[tuple[str, float], ...]  # (name, probability), the most probable first
    fault: str  # empty for a readable image


def predict(source: Path, paths: Sequence[Path], *, top: int) -> list[Prediction]:
    """One prediction per path, in their order, from a run folder or a checkpoint.

    Any readable image will do: it is turned upright, laid over white where it is transparent, resized and
    centre-cropped to 32x32. One that cannot be read has a fault, and the others are predicted all the same.
    """
    net, _ = classifier.of_run(source)
    batches = (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
    return [prediction for batch in batches for prediction in _predict_batch(net, batch, top=top)]


def as_table(predictions: Sequence[Prediction]) -> Table:
    """The readable files for a terminal, a row each."""
    table = Table("file", "class", "probability", "then")
    for prediction in predictions:
        if prediction.classes:
            (name, probability), *others = prediction.classes
            then = ", ".join(f"{other} {value:.1%}" for other, value in others)
            table.add_row(str(prediction.path), name, f"{probability:.1%}", then)
    return table


def as_csv(predictions: Sequence[Prediction]) -> str:
    """One line per readable file and class: file, rank from 1, class, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "rank", "class", "probability"])
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            writer.writerow([prediction.path, rank, name, f"{probability:.6f}"])
    return text.getvalue().rstrip("\n")


def as_json(predictions: Sequence[Prediction]) -> str:
    """Every file, with its classes or its fault."""
    return json.dumps([
        {"file": str(prediction.path), "classes": dict(prediction.classes)}
        | ({"fault": prediction.fault} if prediction.fault else {})
        for prediction in predictions
    ], indent=1)  # fmt: skip


def _predict_batch(net: classifier.Classifier, paths: Sequence[Path], *, top: int) -> list[Prediction]:
    images, faults = {}, {}
    for path in paths:
        try:
            images[path] = read_image(path)
        except InputError as error:
            faults[path] = str(error)
    best = _best_classes(net, np.stack(list(images.values())), top=top) if images else []
    classes = dict(zip(images, best, strict=True))
    return [Prediction(path, classes.get(path, ()), faults.get(path, "")) for path in paths]


def _best_classes(
    net: classifier.Classifier, images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", *, top: int
) -> list[tuple[tuple[str, float], ...]]:
    best = net.probabilities(torch.from_numpy(images)).topk(min(top, len(net.class_names)))
    names = [[net.class_names[index] for index in row] for row in best.indices.tolist()]
    return [tuple(zip(*row, strict=True)) for row in zip(names, best.values.tolist(), strict=True)]
