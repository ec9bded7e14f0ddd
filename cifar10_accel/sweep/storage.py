"""Optuna storage of a sweep: a journal file in its folder, or a database shared by several machines."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from cifar10_accel.errors import OutOfResourcesError
from cifar10_accel.formatting import error_line
from cifar10_accel.sweep.database import cause_of, open_database

JOURNAL = "journal.log"


def open_storage(folder: Path, url: str | None) -> optuna.storages.BaseStorage:
    """Open the storage at a URL or, without one, the journal file of the folder, which is created if missing.

    Raises:
        SettingsError: The database cannot be opened.
    """
    if url is not None:
        return open_database(url)
    path = str(folder / JOURNAL)
    return optuna.storages.JournalStorage(_Journal(path, lock_obj=_KernelLock(path)))


class _Journal(JournalFileBackend):
    """Journal file whose faults, such as a full disk, are those of a storage, as a database reports its own."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise StorageInternalError(f"{self._file_path}: {error.strerror or error}") from error


class _KernelLock(JournalFileOpenLock):
    """Lock of those who append to the journal file, which the kernel releases if its holder is killed.

    (Optuna's own blocks for 30 s then.) A line that a full disk or a power cut has left incomplete is removed first: a
    complete one behind it would make the file unreadable.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            _cut_incomplete_line(self._path)
        except OSError:
            self._lock.release()  # Optuna releases only locks that it has acquired
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _cut_incomplete_line(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def folder_id(folder: Path) -> str:
    """Return the folder's random id, the same for all runners that use the folder. Requires the folder's lock."""
    path = folder / ".mark"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


@contextmanager
def storage_outage_explained() -> Iterator[None]:
    """Context that turns a storage failure, which is no bug, into a one-line `OutOfResourcesError`."""
    try:
        yield
    except StorageInternalError as error:
        raise OutOfResourcesError(
            f"storage: {error_line(cause_of(error))}; when it is back, the same command continues"
        ) from None
