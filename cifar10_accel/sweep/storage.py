"""Where a sweep's record is kept: a journal file in its folder, or a database that many machines share."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from cifar10_accel.errors import OutOfResourcesError, SettingsError

JOURNAL = "journal.log"


def open_storage(folder: Path, url: str | None) -> optuna.storages.BaseStorage:
    """The storage at a URL, or the folder's journal, which is made if it is not there. `SettingsError` if it fails."""
    if url is None:
        path = str(folder / JOURNAL)
        return optuna.storages.JournalStorage(JournalFileBackend(path, lock_obj=_KernelLock(path)))
    try:
        return optuna.storages.RDBStorage(url)
    except Exception:  # one for each of many databases; also when two first runners make the same tables at once
        time.sleep(2)
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:
        raise SettingsError(
            f"storage: cannot be opened ({_first_line(error)}); give a URL like postgresql://user@host/base"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class _KernelLock(JournalFileOpenLock):
    """The journal's lock, freed by the kernel if its holder is killed; Optuna's own then holds all up for 30 s."""

    def __init__(self, path: str) -> None:
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def mark_of(folder: Path) -> str:
    """The mark of a folder, the same for all who share it. Only under the folder's lock."""
    path = folder / ".mark"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


@contextmanager
def storage_outage_explained() -> Iterator[None]:
    """A storage that fails in the middle is the user's to mend, not a bug: one line."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise OutOfResourcesError(
            f"storage: {_first_line(error)}; when it is back, the same command continues"
        ) from None
