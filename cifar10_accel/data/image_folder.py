"""Data set of image files in class folders: `train/<class>/*.png` and `test/<class>/*.png`, and `val/` if it exists.

What is skipped or changed is logged once, a line for each kind.
"""

import logging
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from rich.console import Console
from rich.progress import Progress, TextColumn

from cifar10_accel.data.image_files import CHANGES, Change, heif_is_installed, load_image
from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.files import name_as_text

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
HEIC_SUFFIXES = frozenset({".heic", ".heif"})
VAL_NAMES = ("val", "valid", "validation")
LISTED = 5  # names listed in a line

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # (N, size, size, 3) uint8, (N,) int64


@dataclass(frozen=True)
class FolderData:
    """Content of a folder data set; arrays are images (N, size, size, 3) uint8 and labels (N,) int64."""

    class_names: tuple[str, ...]  # in alphabetical order
    train: Arrays
    test: Arrays
    val: Arrays | None  # None without a folder for it


@dataclass(frozen=True)
class _Split:
    """Files of one split by class, and what is no image in it."""

    folder: Path
    classes: dict[str, list[Path]]  # only classes with images
    empty: list[str]  # folders without images
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return sum(map(len, self.classes.values()))


def read(data_dir: Path, image_size: int = 32) -> FolderData:
    """Read all images of a folder data set.

    The classes are the folders in `train` that contain images; those of the other splits must be among them. Names are
    compared in Unicode's normal form C, so that a name is one class however its accents are stored. Files are read in
    alphabetical order; hidden files and files without the suffix of an image are skipped.

    Args:
        data_dir: The folder with `train` and `test`.
        image_size: Height and width that all images get.

    Raises:
        InputError: A folder is missing or has no images, or an image cannot be read.
        OutOfResourcesError: The images do not fit into memory.
    """
    val_dir = next((data_dir / name for name in VAL_NAMES if (data_dir / name).is_dir()), None)
    train, test = _scan(data_dir / "train"), _scan(data_dir / "test")
    val = None if val_dir is None else _scan(val_dir)
    splits = [split for split in (train, test, val) if split is not None]
    class_names = tuple(sorted(train.classes))
    for split in splits:
        unknown = sorted(split.classes.keys() - set(class_names))
        if unknown:
            raise InputError(f"{split.folder / unknown[0]}: class without training images in {train.folder}")
        _log_contents(split, class_names)
    _require_memory(data_dir, sum(map(len, splits)), image_size)
    return FolderData(
        class_names,
        _read(train, class_names, image_size),
        _read(test, class_names, image_size),
        None if val is None else _read(val, class_names, image_size),
    )


def _scan(folder: Path) -> _Split:
    """List the image files of a split by class, in alphabetical order."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a folder data set has train/<class>/ and test/<class>/")
    found: dict[str, list[Path]] = {}
    spellings: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            skipped["hidden"] += 1
        elif not entry.is_dir():
            skipped["outside of class folders"] += 1
        else:
            name = unicodedata.normalize("NFC", name_as_text(entry.name))
            if spellings.setdefault(name, entry.name) != entry.name:
                _log_once(f"{folder}: two folders are named {name}, with the accents stored in two forms; one class")
            found.setdefault(name, []).extend(_images(entry, skipped))
    classes = {name: paths for name, paths in found.items() if paths}
    if not classes:
        raise InputError(f"{folder}: contains no images in class folders; put them into one folder per class")
    return _Split(folder, classes, [name for name in found if name not in classes], skipped)


def _images(class_dir: Path, skipped: Counter[str]) -> list[Path]:
    """Return the image files of a class folder, and count the others."""
    known = SUFFIXES | HEIC_SUFFIXES if heif_is_installed() else SUFFIXES
    paths = []
    for path in sorted(class_dir.iterdir()):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            skipped["hidden"] += 1
        elif suffix in known:
            paths.append(path)
        elif path.is_dir():
            skipped["folder in a class folder"] += 1
        else:
            skipped[f"{suffix or 'no suffix'}{', pip install pillow-heif' if suffix in HEIC_SUFFIXES else ''}"] += 1
    return paths


def _log_contents(split: _Split, class_names: tuple[str, ...]) -> None:
    if split.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in split.skipped.most_common())
        _log_once(f"{split.folder}: {_counted(split.skipped.total(), 'file')} skipped, no image ({reasons})")
    ignored = [name for name in split.empty if name not in class_names]
    if ignored:
        folders = _counted(len(ignored), "folder")
        _log_once(f"{split.folder}: {folders} without images not counted as a class ({_listed(ignored)})")
    missing = [name for name in class_names if name not in split.classes]
    if missing:
        _log_once(
            f"{split.folder}: no images of {len(missing)} of {len(class_names)} classes ({_listed(missing)}); "
            "their accuracy is unknown"
        )


def _require_memory(data_dir: Path, num_images: int, size: int) -> None:
    needed, available = num_images * size * size * 3, psutil.virtual_memory().available
    if needed > available:
        raise OutOfResourcesError(
            f"{data_dir}: {num_images:,} images of {size}x{size} need {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are available; give a smaller --image-size"
        )


def _read(split: _Split, class_names: tuple[str, ...], size: int) -> Arrays:
    files = [(path, label) for label, name in enumerate(class_names) for path in split.classes.get(name, ())]
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    changes: Counter[Change] = Counter()
    for number, (path, _) in enumerate(_with_progress(files, str(split.folder))):
        images[number], changed = load_image(path, size)
        changes.update(changed)
    _log_changes(split.folder, len(files), changes, size)
    return images, np.array([label for _, label in files], dtype=np.int64)


def _log_changes(folder: Path, num_images: int, changes: Counter[Change], size: int) -> None:
    for kind, what in CHANGES.items():
        details = {change.detail: count for change, count in changes.most_common() if change.kind == kind}
        if details:
            listed = f" ({_listed([f'{detail} {count}' for detail, count in details.items()])})" if all(details) else ""
            total = sum(details.values())
            _log_once(f"{folder}: {total:,} of {num_images:,} images {what.format(size=size)}{listed}")


def _with_progress(files: list[tuple[Path, int]], title: str) -> Iterator[tuple[Path, int]]:
    """Yield the files; after a second a progress bar appears, if stderr is a terminal."""
    console = Console(stderr=True, markup=False)
    columns = (TextColumn("{task.description}", markup=False), *Progress.get_default_columns()[1:])
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task(title, total=len(files))
    start = time.monotonic()
    try:
        for file in files:
            yield file
            progress.advance(task)
            if time.monotonic() - start > 1:
                progress.start()
    finally:
        progress.stop()


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number > 1)}"


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    more = len(all_names) - LISTED
    return ", ".join(all_names[:LISTED]) + (f" and {more} more" if more > 0 else "")


@cache  # one line per process: a data set is read again for the report
def _log_once(message: str) -> None:
    logger.warning(message)
