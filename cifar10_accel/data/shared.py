"""One copy of the images for all the processes of a machine."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar10_accel.data.cifar10 import Dataset, Split, load
from cifar10_accel.errors import UserError
from cifar10_accel.settings import Settings


def load_shared(accelerator: Accelerator, settings: Settings) -> Dataset:
    """`cifar10.load`, done by one process of each machine; the others map what it read instead of holding it again.

    All ranks must call this; an error of one is raised on all. The arrays go through files that are deleted
    as soon as everybody has opened them, so nothing is left behind and nothing stale can be read. Where there
    is no room for the files, every process holds a copy of its own.
    """
    if accelerator.num_processes == 1:
        return load(settings, seed=settings.seed)
    outcomes = gather_object([_write(settings) if accelerator.is_local_main_process else None])
    files = outcomes[accelerator.process_index - accelerator.local_process_index]
    failed = next((outcome for outcome in outcomes if isinstance(outcome, UserError)), None)
    dataset = files.open() if failed is None and files else None
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process and isinstance(files, _Files):
        files.remove()
    if failed is not None:
        raise failed
    return dataset or load(settings, seed=settings.seed)


class _Files(NamedTuple):
    """A data set in a temporary folder, one .npy file per array."""

    folder: Path
    name: str
    class_names: tuple[str, ...]

    def write(self, dataset: Dataset) -> None:
        for name, split in {"train": dataset.train, "val": dataset.val, "test": dataset.test}.items():
            if split is not None:
                np.save(self.folder / f"{name}.images.npy", split.images)
                np.save(self.folder / f"{name}.labels.npy", split.labels)

    def open(self) -> Dataset:
        """The data set on the files' pages, which the system holds once. Stays whole when the files are removed."""
        has_val = (self.folder / "val.labels.npy").exists()
        return Dataset(
            self.name, self.class_names, self._split("train"), self._split("val") if has_val else None,
            self._split("test"),
        )  # fmt: skip

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _split(self, name: str) -> Split:
        # Copy on write: torch takes no read-only arrays, and nobody writes.
        images, labels = (np.load(self.folder / f"{name}.{part}.npy", mmap_mode="c") for part in ("images", "labels"))
        return Split(images, labels)


def _write(settings: Settings) -> _Files | UserError | None:
    """The data set as files for the others, what is wrong with it, or None if there is no room for files."""
    try:
        dataset = load(settings, seed=settings.seed)
    except UserError as error:
        error.is_shared = True
        return error
    try:
        files = _Files(Path(tempfile.mkdtemp(prefix="cifar10-accel-")), dataset.name, dataset.class_names)
    except OSError:
        return None
    try:
        files.write(dataset)
    except OSError as error:
        print(f"warning: {files.folder}: no room ({error}); every process holds its own images", file=sys.stderr)
        files.remove()
        return None
    return files
