"""Predicts the class of image files with a trained run."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from rich.table import Table

from cifar10_accel import classifier
from cifar10_accel.data.folder import read_image
from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.grad_cam import heat_maps, overlay

BATCH = 256  # images in memory at a time
ENLARGED = 8  # times: the side of the pictures that are written

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image file, or what is wrong with the file."""

    path: Path
    classes: tuple[tuple[str, float], ...]  # (name, probability), the most probable first
    fault: str  # empty for a readable image


def predict(source: Path, paths: Sequence[Path], *, top: int, overlays: Path | None = None) -> list[Prediction]:
    """One prediction per path, in their order, from a run folder or a checkpoint.

    Any readable image will do: it is turned upright, laid over white where it is transparent, resized and
    centre-cropped to 32x32. One that cannot be read has a fault, and the others are predicted all the same.
    overlays: folder for a picture of each, <name>-<class>.png: what the net saw, and with Grad-CAM what in it spoke
    for its most probable class. Raises `OutOfResourcesError` if they cannot be written.
    """
    net, _ = classifier.of_run(source)
    batches = (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
    return [prediction for batch in batches for prediction in _predict_batch(net, batch, top=top, overlays=overlays)]


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


def _predict_batch(
    net: classifier.Classifier, paths: Sequence[Path], *, top: int, overlays: Path | None
) -> list[Prediction]:
    images, faults = {}, {}
    for path in paths:
        try:
            images[path] = read_image(path)
        except InputError as error:
            faults[path] = str(error)
    best = _best_classes(net, np.stack(list(images.values())), top=top) if images else []
    classes = dict(zip(images, best, strict=True))
    if overlays is not None and images:
        _write_overlays(net, images, [names[0][0] for names in best], overlays)
    return [Prediction(path, classes.get(path, ()), faults.get(path, "")) for path in paths]


def _write_overlays(net: classifier.Classifier, images: dict[Path, Pixels], names: list[str], folder: Path) -> None:
    """<stem>-<class>.png, numbered where that is there already: the 32x32 pixels enlarged, plain and with the heat."""
    inputs = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2) / 255
    chosen = torch.tensor([net.class_names.index(name) for name in names])
    heats = F.interpolate(heat_maps(net, inputs, chosen)[:, None], scale_factor=ENLARGED, mode="bilinear")[:, 0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for (path, image), name, heat in zip(images.items(), names, heats.numpy(), strict=True):
            large = image.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
            both = np.concatenate([large, overlay(large, heat)], axis=1)
            Image.fromarray(both).save(_free_name(folder, f"{path.stem}-{name}"))
    except OSError as error:
        raise OutOfResourcesError(f"{folder}: cannot be written ({error.strerror}); give another folder") from None


def _free_name(folder: Path, stem: str) -> Path:
    names = (f"{stem}{number}.png" for number in chain([""], (f"-{k}" for k in count(2))))
    return next(folder / name for name in names if not (folder / name).exists())


def _best_classes(
    net: classifier.Classifier, images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", *, top: int
) -> list[tuple[tuple[str, float], ...]]:
    best = net.probabilities(torch.from_numpy(images)).topk(min(top, len(net.class_names)))
    names = [[net.class_names[index] for index in row] for row in best.indices.tolist()]
    return [tuple(zip(*row, strict=True)) for row in zip(names, best.values.tolist(), strict=True)]
