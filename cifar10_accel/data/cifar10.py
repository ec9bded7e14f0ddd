"""The images of a run: verified uint8 arrays, whichever data set the settings ask for."""

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar10_accel.data import official
from cifar10_accel.errors import SettingsError
from cifar10_accel.randomness import draws, keys_for, seed_for
from cifar10_accel.settings import DataSettings


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels: training, hold-out or test. Not to be written to: copies may be on a device."""

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
        """The part with these indices, in their order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """Everything a run trains on and is measured with; `name` says what it really is."""

    name: str  # cifar10, synthetic or folder: never auto
    class_names: tuple[str, ...]
    train: Split
    val: Split | None  # held out of the training set; None for val_size 0
    test: Split


def load(settings: DataSettings, *, seed: int) -> Dataset:
    """The data set of the settings, with `val_size` images held out of its training set.

    Raises `InputError` for files that are damaged (also under auto) or cannot be had, `SettingsError`
    for a hold-out that leaves nothing to train on.
    """
    dataset = _whole(available(settings), settings, seed=seed)
    if settings.val_size == 0:
        return dataset
    train, val = hold_out(dataset.train, val_size=settings.val_size, seed=seed)
    return Dataset(dataset.name, dataset.class_names, train, val, dataset.test)


def available(settings: DataSettings) -> str:
    """The name of the data set that the settings come to, never auto; its files are there on return.

    cifar10 is downloaded when it is missing, by one process while others that ask wait for it; data
    that is present is never downloaded again. auto is cifar10 if it is present or can be had, and
    otherwise synthetic, with a warning. Raises `InputError` for a cifar10 that cannot be had.
    """
    if settings.dataset not in ("auto", "cifar10") or official.locate(settings.data_dir) is not None:
        return "cifar10" if settings.dataset == "auto" else settings.dataset
    from cifar10_accel.data import download  # takes time to import, and few runs need it

    try:
        download.fetch(settings.data_dir, sources=download.SOURCES)
    except official.NoDataError as error:
        if settings.dataset == "cifar10":
            raise
        _warn_of_synthetic(str(error))
        return "synthetic"
    return "cifar10"


def hold_out(train: Split, *, val_size: int, seed: int) -> tuple[Split, Split]:
    """The training set without `val_size` images, and these; every class loses the same share.

    Which images is a function of the seed and the labels; both parts keep the order of the set.
    """
    if val_size >= len(train):
        raise SettingsError(
            f"val_size: {val_size} leaves nothing of {len(train)} training images; give less than {len(train)}"
        )
    keys = keys_for(seed_for(seed, "hold-out"), np.arange(len(train)))
    shuffled = np.lexsort((draws(keys, 0), train.labels))  # class by class, each in random order
    sizes = np.bincount(train.labels)
    starts = np.cumsum(sizes) - sizes
    labels = train.labels[shuffled]
    # How much of its class comes before an image: taking the lowest takes the same share of each.
    place_in_class = (np.arange(len(train)) - starts[labels] + 0.5) / sizes[labels]
    chosen = shuffled[np.argsort(place_in_class, kind="stable")[:val_size]]
    is_held_out = np.zeros(len(train), dtype=bool)
    is_held_out[chosen] = True
    return train.take(np.flatnonzero(~is_held_out)), train.take(np.flatnonzero(is_held_out))


def _whole(name: str, settings: DataSettings, *, seed: int) -> Dataset:
    if name == "synthetic":
        return _synthetic(settings.synthetic_size, seed=seed)
    return _folder(settings.data_dir) if name == "folder" else _cifar10(settings.data_dir)


def _cifar10(data_dir: Path) -> Dataset:
    found = official.locate(data_dir)
    assert found is not None, "there is no data"
    train, test = (_split_of(batch) for batch in official.read(*found))
    return Dataset("cifar10", official.CLASS_NAMES, train, None, test)


def _split_of(batch: official.Batch) -> Split:
    images = batch.pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), batch.labels.astype(np.int64))


def _synthetic(num_train: int, *, seed: int) -> Dataset:
    from cifar10_accel.data import synthetic

    train = Split(*synthetic.draw_images(num_train, seed=seed, purpose="train"))
    test = Split(*synthetic.draw_images(num_train // 5, seed=seed, purpose="test"))
    return Dataset("synthetic", synthetic.CLASS_NAMES, train, None, test)


def _folder(data_dir: Path) -> Dataset:
    from cifar10_accel.data import folder

    class_names, train, test = folder.read(data_dir)
    return Dataset("folder", class_names, Split(*train), None, Split(*test))


@cache  # once per process and reason
def _warn_of_synthetic(reason: str) -> None:
    if os.environ.get("RANK", "0") != "0":  # every rank comes here; one box is enough
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    text = (
        "CIFAR-10 is not here and could not be had. This run uses SYNTHETIC images: drawn shapes. "
        f"Its accuracies say nothing about CIFAR-10.\n\n{reason}"
    )
    Console(file=sys.stderr).print(Panel(Text(text), title="WARNING: SYNTHETIC DATA", border_style="bold red"))
