"""Loading of the data set of the settings as verified uint8 arrays, and the hold-out."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from cifar10_accel.components import call_component, load_component, user_code
from cifar10_accel.data.cifar_files import CIFAR10, CIFAR100, CifarFiles, NoDataError, official_files
from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.data.image_format import CIFAR10_IMAGES, CIFAR100_IMAGES, ImageFormat
from cifar10_accel.errors import SettingsError
from cifar10_accel.randomness import draws, keys_for, seed_for
from cifar10_accel.settings import DataSettings

logger = logging.getLogger(__name__)


def load_dataset(settings: DataSettings, *, seed: int) -> Dataset:
    """Load the data set of the settings, with `val_size` images held out of its training set.

    Args:
        settings: Name, folder and sizes of the data set.
        seed: Seed of the hold-out and of synthetic images.

    Raises:
        InputError: Files are damaged (also with `auto`) or cannot be obtained.
        SettingsError: The hold-out leaves no training images.
    """
    name = ensure_dataset(settings)
    dataset = _LOADERS[name](settings, seed) if name in _LOADERS else _load_imported(settings, seed)
    size = dataset.image_format.size
    if settings.image_size not in (None, size):
        raise SettingsError(
            f"image_size: {settings.image_size}, but the images of {name} are {size} pixels a side; leave it out"
        )
    if settings.val_size == 0:
        return dataset
    if dataset.val is not None:
        _warn_once(f"val_size: {settings.val_size} has no effect, {name} has a hold-out of its own; leave it out")
        return dataset
    train, val = hold_out(dataset.train, val_size=settings.val_size, seed=seed)
    return replace(dataset, train=train, val=val)


def ensure_dataset(settings: DataSettings) -> str:
    """Resolve the setting `dataset` and download the files if they are missing.

    One process downloads while others that call this wait. Files that are present are never downloaded again. `auto`
    is resolved to cifar10 if it is present or can be downloaded, and otherwise to synthetic, with a warning.

    Returns:
        The name of the data set, never `auto`.

    Raises:
        NoDataError: The setting is cifar10 or cifar100, and it is missing and cannot be downloaded.
    """
    official = official_files(settings.dataset)
    if official is None or official.locate(settings.data_dir) is not None:
        return official.dataset if official else settings.dataset
    from cifar10_accel.data import download  # takes time to import, and few runs need it

    try:
        download.fetch(official, settings.data_dir)
    except NoDataError as error:
        if settings.dataset != "auto":
            raise
        _warn_about_synthetic(str(error))
        return "synthetic"
    return official.dataset


def hold_out(train: Split, *, val_size: int, seed: int) -> tuple[Split, Split]:
    """Split a stratified hold-out off the training set.

    The choice is a function of the seed and the labels. A larger hold-out contains a smaller one of the same seed.

    Returns:
        The remaining training set and the hold-out of `val_size` images, both in the order of the given set.

    Raises:
        SettingsError: `val_size` leaves no training images.
    """
    if val_size >= len(train):
        raise SettingsError(
            f"val_size: {val_size} leaves nothing of {len(train)} training images; give less than {len(train)}"
        )
    keys = keys_for(seed_for(seed, "hold-out"), np.arange(len(train)))
    shuffled = np.lexsort((draws(keys, 0), train.labels))  # sorted by class, in random order within each
    sizes = np.bincount(train.labels)
    starts = np.cumsum(sizes) - sizes
    labels = train.labels[shuffled]
    # Relative position of an image in its class, 0 .. 1: the smallest ones are the same fraction of every class.
    position_in_class = (np.arange(len(train)) - starts[labels] + 0.5) / sizes[labels]
    chosen = shuffled[np.argsort(position_in_class, kind="stable")[:val_size]]
    is_held_out = np.zeros(len(train), dtype=bool)
    is_held_out[chosen] = True
    return train.take(np.flatnonzero(~is_held_out)), train.take(np.flatnonzero(is_held_out))


def _load_cifar(official: CifarFiles, image_format: ImageFormat, settings: DataSettings, seed: int) -> Dataset:
    found = official.locate(settings.data_dir)
    assert found is not None, "ensure_dataset was not called"
    train, test, class_names = official.read(*found)
    return Dataset(
        name=official.dataset,
        train=(train.images, train.labels),
        test=(test.images, test.labels),
        class_names=class_names,
        image_format=image_format,
    )


def _load_synthetic(settings: DataSettings, seed: int) -> Dataset:
    from cifar10_accel.data import synthetic

    return Dataset(
        name="synthetic",
        train=synthetic.draw_images(settings.synthetic_size, seed=seed, purpose="train"),
        test=synthetic.draw_images(settings.synthetic_size // 5, seed=seed, purpose="test"),
        class_names=synthetic.CLASS_NAMES,
        image_format=CIFAR10_IMAGES,
    )


def _load_folder(settings: DataSettings, seed: int) -> Dataset:
    from cifar10_accel.data import image_folder

    found = image_folder.read(settings.data_dir, settings.image_size or 32)
    if found.val is not None and settings.val_size:
        raise SettingsError(f"val_size: {settings.val_size}, but {settings.data_dir} has a folder val; leave it out")
    return Dataset(name="folder", train=found.train, test=found.test, val=found.val, class_names=found.class_names)


def _load_imported(settings: DataSettings, seed: int) -> Dataset:
    """Load the data set that an import path stands for: a function that returns one, or the data set itself."""
    from cifar10_accel.data.conversion import to_dataset

    path = settings.dataset
    found = load_component(path, setting="dataset")
    if callable(found):
        known: dict[str, Any] = {"settings": settings, "seed": seed}
        if settings.image_size is not None:  # else the function's own default
            known["image_size"] = settings.image_size
        found = call_component(found, known, path=path, setting="dataset")
    with user_code(path, setting="dataset"):
        return to_dataset(found, name=path)


_LOADERS: dict[str, Callable[[DataSettings, int], Dataset]] = {
    "cifar10": partial(_load_cifar, CIFAR10, CIFAR10_IMAGES),
    "cifar100": partial(_load_cifar, CIFAR100, CIFAR100_IMAGES),
    "synthetic": _load_synthetic,
    "folder": _load_folder,
}


@cache  # a data set is read again for the report
def _warn_once(message: str) -> None:
    logger.warning(message)


@cache  # one warning per process and reason
def _warn_about_synthetic(reason: str) -> None:
    if os.environ.get("RANK", "0") != "0":  # one warning for all ranks
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    text = (
        "CIFAR-10 is missing and could not be downloaded. This run uses SYNTHETIC images: drawn shapes. "
        f"Its accuracies say nothing about CIFAR-10.\n\n{reason}"
    )
    panel = Panel(Text(text), title="WARNING: SYNTHETIC DATA", border_style="bold red")
    Console(file=sys.stderr, markup=False).print(panel)
