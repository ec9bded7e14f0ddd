"""Conversion of data sets of other libraries into arrays: torchvision-style and Hugging Face `datasets`."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from cifar10_accel.data.dataset import Dataset, Part
from cifar10_accel.data.deep_images import UnsupportedImage
from cifar10_accel.data.image_files import pixels_of
from cifar10_accel.data.image_folder import VAL_NAMES
from cifar10_accel.errors import InputError

IMAGE_COLUMNS = ("image", "img", "pixels")
LABEL_COLUMNS = ("label", "fine_label", "labels")

logger = logging.getLogger(__name__)


def to_dataset(found: Any, *, name: str) -> Dataset:
    """Return what a function of the user returned as a `Dataset`.

    Args:
        found: A `Dataset`; a pair (train, test), or a mapping with these keys and perhaps `val`, `valid` or
            `validation`, of torchvision-style data sets (`len`, and items of an image and a label) or splits of Hugging
            Face `datasets`. Images are PIL images or (H, W, C) uint8 arrays; they are read once, into memory. Where the
            parts name their classes, labels are matched by name.
        name: Name of the data set.

    Raises:
        InputError: It is none of these, or an item is not an image with a label.
    """
    if isinstance(found, Dataset):
        return found
    if isinstance(found, Mapping):
        parts = {"train": found.get("train"), "test": found.get("test")}
        val = next((found[name] for name in VAL_NAMES if name in found), None)
        unused = [str(name) for name in found if name not in ("train", "test", *VAL_NAMES)]
        if unused:
            logger.warning("dataset %s: %s not used, only train, test and val", name, ", ".join(unused))
    elif isinstance(found, tuple | list) and len(found) == 2:
        parts, val = {"train": found[0], "test": found[1]}, None
    else:
        parts, val = {}, None
    if any(part is None for part in parts.values()) or not parts:
        raise InputError(
            f"dataset: {name} gave a {type(found).__name__}; expected a Dataset, or a training and a test set"
        )
    class_names = _class_names(parts["train"])
    return Dataset(
        name=name,
        train=_read(parts["train"], f"{name}, train"),
        test=_read_as_named(parts["test"], f"{name}, test", class_names),
        val=None if val is None else _read_as_named(val, f"{name}, val", class_names),
        class_names=class_names,
    )


def _read_as_named(part: Any, where: str, class_names: list[str] | None) -> Part:
    """Read a data set, its labels as the training set numbers the classes; torchvision numbers each folder by itself.

    Raises:
        InputError: It has a class that the training set does not have.
    """
    own_names = _class_names(part)
    if own_names is None or class_names is None or own_names == class_names:
        return _read(part, where)
    unknown = [one for one in own_names if one not in class_names]
    if unknown:
        raise InputError(
            f"dataset {where}: the training set has no class {unknown[0]!r} (it has {', '.join(class_names)})"
        )
    images, labels = _read(part, where)
    if labels.min() < 0 or labels.max() >= len(own_names):
        raise InputError(f"dataset {where}: labels are {labels.min()} .. {labels.max()} for {len(own_names)} classes")
    return images, np.array([class_names.index(one) for one in own_names])[labels]


def _read(part: Any, where: str) -> tuple[npt.ArrayLike, Any]:
    """Read every item of a data set into arrays; pairs of arrays are returned as they are."""
    if isinstance(part, tuple | list) and len(part) == 2 and hasattr(part[0], "dtype"):
        return part[0], part[1]
    if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
        raise InputError(f"dataset {where}: a {type(part).__name__} has no length or items; give a map-style data set")
    images, labels = [], []
    console = Console(stderr=True, markup=False)
    for index in track(range(len(part)), escape(f"reading {where}"), console=console, transient=True):
        image, label = _image_and_label(part[index], where)
        images.append(image)
        labels.append(label)
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise InputError(
            f"dataset {where}: images have several shapes ({shapes[0]}, {shapes[-1]}); resize them to one, and convert "
            "them to RGB if some are grayscale"
        )
    return np.stack(images), np.array(labels)


def _image_and_label(item: Any, where: str) -> tuple[npt.NDArray[Any], int]:
    if isinstance(item, Mapping):  # of Hugging Face datasets
        image = next((item[name] for name in IMAGE_COLUMNS if name in item), None)
        label = next((item[name] for name in LABEL_COLUMNS if name in item), None)
        if image is None or label is None:
            raise InputError(
                f"dataset {where}: items have {', '.join(map(str, item))}; expected an image "
                f"({', '.join(IMAGE_COLUMNS)}) and a label ({', '.join(LABEL_COLUMNS)})"
            )
    else:
        image, label = item
    if int(label) != float(label):
        raise InputError(f"dataset {where}: a label is {label}; expected whole numbers")
    try:
        return pixels_of(image) if hasattr(image, "convert") else np.asarray(image), int(label)  # of PIL, or an array
    except UnsupportedImage as error:
        raise InputError(f"dataset {where}: an image: {error}") from None


def _class_names(train: Any) -> list[str] | None:
    """Return the class names that torchvision (`classes`) or Hugging Face data sets (`features`) know."""
    if isinstance(getattr(train, "classes", None), list | tuple):
        return [str(name) for name in train.classes]
    features = getattr(train, "features", None)
    if isinstance(features, Mapping):
        for column in LABEL_COLUMNS:
            if hasattr(features.get(column), "names"):
                return list(features[column].names)
    return None
