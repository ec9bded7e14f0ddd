"""Sharing of the images between the processes of a machine by memory-mapped files."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import UserError
from cifar10_accel.settings import Settings

logger = logging.getLogger(__name__)


def load_dataset_shared(accelerator: Accelerator, settings: Settings) -> Dataset:
    """Load the data set in one process per machine and map it into the memory of the others.

    All ranks must call this; an error on one rank is raised on all. The arrays are passed in temporary files, which
    are deleted as soon as all processes have opened them. If there is no space for these files, every process loads a
    copy of its own.

    Raises:
        InputError: The data set is damaged or cannot be obtained.
        SettingsError: The hold-out leaves no training images.
    """
    if accelerator.num_processes == 1:
        return load_dataset(settings, seed=settings.seed)
    outcomes = gather_object([_write(settings) if accelerator.is_local_main_process else None])
    files = outcomes[accelerator.process_index - accelerator.local_process_index]
    failed = next((outcome for outcome in outcomes if isinstance(outcome, UserError)), None)
    dataset = files.open() if failed is None and files else None
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process and isinstance(files, _Files):
        files.remove()
    if failed is not None:
        raise failed
    return dataset or load_dataset(settings, seed=settings.seed)


class _Files(NamedTuple):
    """Data set in a temporary folder, one .npy file per array."""

    folder: Path
    name: str
    class_names: tuple[str, ...]
    image_format: ImageFormat

    def write(self, dataset: Dataset) -> None:
        for name, split in {"train": dataset.train, "val": dataset.val, "test": dataset.test}.items():
            if split is not None:
                np.save(self.folder / f"{name}.images.npy", split.images)
                np.save(self.folder / f"{name}.labels.npy", split.labels)

    def open(self) -> Dataset:
        """Return the data set as memory maps of the files; it stays valid after the files are removed."""
        has_val = (self.folder / "val.labels.npy").exists()
        return Dataset(
            name=self.name,
            train=self._split("train"),
            test=self._split("test"),
            class_names=self.class_names,
            val=self._split("val") if has_val else None,
            image_format=self.image_format,
        )

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _split(self, name: str) -> Split:
        # Copy on write, because torch does not accept read-only arrays; the arrays are never modified.
        images, labels = (np.load(self.folder / f"{name}.{part}.npy", mmap_mode="c") for part in ("images", "labels"))
        return Split(images, labels)


def _write(settings: Settings) -> _Files | UserError | None:
    """Write the data set to files; return the error if it cannot be loaded, None if it cannot be written."""
    try:
        dataset = load_dataset(settings, seed=settings.seed)
    except UserError as error:
        error.is_shared = True
        return error
    try:
        folder = Path(tempfile.mkdtemp(prefix="cifar10-accel-"))
    except OSError:
        return None
    files = _Files(folder, dataset.name, dataset.class_names, dataset.image_format)
    try:
        files.write(dataset)
    except OSError as error:
        logger.warning(
            "%s: cannot be written (%s); every process loads its own copy of the images", files.folder, error
        )
        files.remove()
        return None
    return files
