"""Predict the class of image files with a trained run."""

import csv
import glob
import io
import json
import logging
import re
from collections import Counter
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

from cifar10_accel.data.image_files import ImageFile, load_image
from cifar10_accel.errors import InputError
from cifar10_accel.files import output_of
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.models.grad_cam import heat_maps, overlay

BATCH = 256  # images in memory at a time
SHOWN_SIZE = 256  # pixels: smaller images are enlarged to about this side

Pixels = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image file, or the reason that it cannot be read."""

    path: Path
    classes: tuple[tuple[str, float], ...]  # (name, probability), the most probable first
    fault: str  # empty for a readable image
    notes: tuple[str, ...] = ()  # on what was taken of the image, if that is not all of it


def predict(source: Path, paths: Sequence[Path], *, top: int, overlays: Path | None = None) -> list[Prediction]:
    """Predict image files of any size and format.

    Images are changed to the format that the model takes as `load_image` says: rotated upright, laid over white where
    they are transparent, resized and centre-cropped. A warning is logged for each file of which only a part was used:
    the first frame of several, or the middle of a panorama.

    Args:
        source: A run folder or a checkpoint in one.
        paths: Image files, folders of them, or glob patterns (`find_images`).
        top: Classes per image.
        overlays: Folder for a picture of each image, <name>-<class>.png: the model's input, plain and with the
            Grad-CAM of its most probable class.

    Returns:
        One prediction per file, in their order. A file that cannot be read has a fault, and does not stop the others.

    Raises:
        InputError: `source` is not a run, or a folder or pattern has no images.
        OutOfResourcesError: The disk is full.
        SettingsError: The pictures cannot be written for another reason.
    """
    files = find_images(paths)
    model = Classifier.from_run(source)
    batches = (files[start : start + BATCH] for start in range(0, len(files), BATCH))
    return [prediction for batch in batches for prediction in _predict_batch(model, batch, top=top, overlays=overlays)]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the image files that paths name: files as they are, folders and glob patterns searched recursively.

    What a folder or a pattern holds comes in natural order: image 2 before image 10. In folders, hidden files are left
    out, and others that are no images are counted in a warning.

    Raises:
        InputError: A folder or pattern has no images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = _images_below(path)
        elif glob.has_magic(str(path)) and not path.exists():
            found = [file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file()]
        else:
            files.append(path)
            continue
        if not found:
            raise InputError(f"{path}: no image files there; give image files, a folder of them or a pattern")
        files += sorted(found, key=_natural_order)
    return files


def _images_below(folder: Path) -> list[Path]:
    """Return the image files below a folder, also of kinds that need a converter: reading them says so."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    known |= {".heic", ".heif", ".svg"}
    files = [file for file in folder.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(folder))]
    found = [file for file in files if file.suffix.lower() in known]
    if len(found) < len(files):
        others = Counter(file.suffix.lower() or "no suffix" for file in files if file.suffix.lower() not in known)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        files_skipped = f"{others.total():,} file{'s' * (others.total() > 1)} skipped"
        logger.warning(f"{folder}: {files_skipped}, no image ({kinds})")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def as_table(predictions: Sequence[Prediction]) -> Table:
    """Return a table with one row per readable file."""
    table = Table("file", "class", "probability", "then")
    for prediction in predictions:
        if prediction.classes:
            (name, probability), *others = prediction.classes
            then = ", ".join(f"{other} {value:.1%}" for other, value in others)
            table.add_row(str(prediction.path), name, f"{probability:.1%}", then)
    return table


def as_csv(predictions: Sequence[Prediction]) -> str:
    """Return CSV with one line per readable file and class: file, rank from 1, class, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "rank", "class", "probability"])
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            writer.writerow([prediction.path, rank, name, f"{probability:.6f}"])
    return text.getvalue().rstrip("\n")


def as_json(predictions: Sequence[Prediction]) -> str:
    """Return JSON with every file, its classes or its fault."""
    return json.dumps(
        [
            {"file": str(prediction.path), "classes": dict(prediction.classes)}
            | ({"fault": prediction.fault} if prediction.fault else {})
            | ({"notes": prediction.notes} if prediction.notes else {})
            for prediction in predictions
        ],
        indent=1,
    )


def enlarged(pixels: Pixels) -> Pixels:
    """Return an image (H, W, 1 or 3) as RGB for a person to look at: each pixel of a small one repeated to a square."""
    factor = max(1, SHOWN_SIZE // pixels.shape[0])
    rgb = pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)
    return rgb.repeat(factor, axis=0).repeat(factor, axis=1)


def with_heat_map(pixels: Pixels, heat: torch.Tensor) -> Pixels:
    """Return an image, enlarged and in gray, with a heat map (H, W) in 0..1 over it."""
    large = enlarged(pixels)
    return overlay(large, F.interpolate(heat[None, None], size=large.shape[:2], mode="bilinear")[0, 0].numpy())


def _predict_batch(model: Classifier, paths: Sequence[Path], *, top: int, overlays: Path | None) -> list[Prediction]:
    takes = model.image_format
    images: dict[Path, ImageFile] = {}
    faults = {}
    for path in paths:
        try:
            images[path] = load_image(path, takes.size, takes.channels)
        except InputError as error:
            faults[path] = str(error)
    notes = {path: _notes(image) for path, image in images.items()}
    for path, lines in notes.items():
        for line in lines:
            logger.warning(f"{path}: {line}")
    best = _best_classes(model, np.stack([image.pixels for image in images.values()]), top=top) if images else []
    classes = dict(zip(images, best, strict=True))
    if overlays is not None and images:
        _write_overlays(model, images, [names[0][0] for names in best], overlays)
    return [Prediction(path, classes.get(path, ()), faults.get(path, ""), notes.get(path, ())) for path in paths]


def _notes(image: ImageFile) -> tuple[str, ...]:
    """Return what a person may not expect: that the prediction is for a part of the file."""
    words = {
        "first frame": "the first of its {} frames was used",
        "panorama": "only the square in its middle was used, {} of the image",
    }
    return tuple(words[kind].format(detail) for kind, detail in image.changes if kind in words)


def _write_overlays(model: Classifier, images: dict[Path, ImageFile], names: list[str], folder: Path) -> None:
    """Write <stem>-<class>.png, with a number if that exists: the model's input, plain and with Grad-CAM."""
    inputs = torch.from_numpy(np.stack([image.pixels for image in images.values()])).permute(0, 3, 1, 2) / 255
    chosen = torch.tensor([model.class_names.index(name) for name in names])
    heats = heat_maps(model, inputs, chosen)
    with output_of("grad_cam", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for (path, image), name, heat in zip(images.items(), names, heats, strict=True):
            both = np.concatenate([enlarged(image.pixels), with_heat_map(image.pixels, heat)], axis=1)
            Image.fromarray(both).save(_free_name(folder, f"{path.stem}-{name.replace('/', '-')}"))


def _free_name(folder: Path, stem: str) -> Path:
    names = (f"{stem}{number}.png" for number in chain([""], (f"-{k}" for k in count(2))))
    return next(folder / name for name in names if not (folder / name).exists())


def _natural_order(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", str(path))]


def _best_classes(
    model: Classifier, images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", *, top: int
) -> list[tuple[tuple[str, float], ...]]:
    best = model.probabilities(torch.from_numpy(images)).topk(min(top, len(model.class_names)))
    names = [[model.class_names[index] for index in row] for row in best.indices.tolist()]
    return [tuple(zip(*row, strict=True)) for row in zip(names, best.values.tolist(), strict=True)]
