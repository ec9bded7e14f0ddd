"""Loading of the data set of the settings as verified uint8 arrays, and the hold-out."""

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar10_accel.data import cifar10_files
from cifar10_accel.errors import SettingsError
from cifar10_accel.randomness import draws, keys_for, seed_for
from cifar10_accel.settings import DataSettings


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of the training, hold-out or test set. Do not modify them: copies may be cached on a device."""

    images: npt.NDArray[np.uint8]  # (N, 32, 32, 3) uint8, contiguous
    labels: npt.NDArray[np.int64]  # (N,) int64, 0 .. K - 1

    def __post_init__(self) -> None:
        assert self.images.shape == (len(self.labels), 32, 32, 3), self.images.shape
        assert self.images.dtype == np.uint8, self.images.dtype
        assert self.labels.dtype == np.int64, self.labels.dtype
        assert self.images.flags.c_contiguous

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "Split":
        """Return the images and labels with these indices, in the order of the indices."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """Training, hold-out and test set of a run."""

    name: str  # of the data set that was loaded: cifar10, synthetic or folder, never auto
    class_names: tuple[str, ...]
    train: Split
    val: Split | None  # held out of the training set; None if val_size is 0
    test: Split


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
    if name == "synthetic":
        dataset = _load_synthetic(settings.synthetic_size, seed=seed)
    else:
        dataset = _load_folder(settings.data_dir) if name == "folder" else _load_cifar10(settings.data_dir)
    if settings.val_size == 0:
        return dataset
    train, val = hold_out(dataset.train, val_size=settings.val_size, seed=seed)
    return Dataset(dataset.name, dataset.class_names, train, val, dataset.test)


def ensure_dataset(settings: DataSettings) -> str:
    """Resolve the setting `dataset` and download the files if they are missing.

    One process downloads while others that call this wait. Files that are present are never downloaded again. `auto`
    is resolved to cifar10 if it is present or can be downloaded, and otherwise to synthetic, with a warning.

    Returns:
        The name of the data set, never `auto`.

    Raises:
        NoDataError: The setting is cifar10, and it is missing and cannot be downloaded.
    """
    if settings.dataset not in ("auto", "cifar10") or cifar10_files.locate(settings.data_dir) is not None:
        return "cifar10" if settings.dataset == "auto" else settings.dataset
    from cifar10_accel.data import download  # takes time to import, and few runs need it

    try:
        download.fetch(settings.data_dir, sources=download.SOURCES)
    except cifar10_files.NoDataError as error:
        if settings.dataset == "cifar10":
            raise
        _warn_about_synthetic(str(error))
        return "synthetic"
    return "cifar10"


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


def _load_cifar10(data_dir: Path) -> Dataset:
    found = cifar10_files.locate(data_dir)
    assert found is not None, "ensure_dataset was not called"
    train, test = (_to_split(batch) for batch in cifar10_files.read(*found))
    return Dataset("cifar10", cifar10_files.CLASS_NAMES, train, None, test)


def _to_split(batch: cifar10_files.Batch) -> Split:
    images = batch.pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), batch.labels.astype(np.int64))


def _load_synthetic(num_train: int, *, seed: int) -> Dataset:
    from cifar10_accel.data import synthetic

    train = Split(*synthetic.draw_images(num_train, seed=seed, purpose="train"))
    test = Split(*synthetic.draw_images(num_train // 5, seed=seed, purpose="test"))
    return Dataset("synthetic", synthetic.CLASS_NAMES, train, None, test)


def _load_folder(data_dir: Path) -> Dataset:
    from cifar10_accel.data import image_folder

    class_names, train, test = image_folder.read(data_dir)
    return Dataset("folder", class_names, Split(*train), None, Split(*test))


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
    Console(file=sys.stderr).print(Panel(Text(text), title="WARNING: SYNTHETIC DATA", border_style="bold red"))
