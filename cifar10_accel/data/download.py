"""Makes the official CIFAR-10 files present: downloaded once, resumed, verified, in place in one step."""

import errno
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifar10_accel.data import official
from cifar10_accel.data.official import NoDataError
from cifar10_accel.data.unpack import unpack_archive, unpack_tables
from cifar10_accel.errors import InputError, OutOfResourcesError

CONNECT_SECONDS = 5.0  # for each address of a host: a machine without network should know it soon
READ_SECONDS = 30.0  # without a single byte: the official site is slow, but steady
CHUNK_BYTES = 1 << 16
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class RemoteFile:
    """A file whose bytes are known before it is downloaded."""

    url: str
    num_bytes: int
    algorithm: str
    digest: str

    @property
    def name(self) -> str:
        """The last part of the URL's path."""
        return PurePosixPath(urlsplit(self.url).path).name


@dataclass(frozen=True)
class Source:
    """Files to download, and how they become the official files of one form in an empty folder."""

    name: str
    files: tuple[RemoteFile, ...]
    form: official.Form
    unpack: Callable[[Sequence[Path], Path], None]


ARCHIVE = RemoteFile(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071, "md5", "c58f30108f718f92721af3b95e74349a"
)
OFFICIAL_SITE = Source("www.cs.toronto.edu", (ARCHIVE,), official.PICKLED, unpack_archive)
_TABLES_URL = (
    "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2/plain_text"
)
_TRAIN_TABLE = RemoteFile(
    f"{_TABLES_URL}/train-00000-of-00001.parquet",
    119_705_255,
    "sha256",
    "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
)
_TEST_TABLE = RemoteFile(
    f"{_TABLES_URL}/test-00000-of-00001.parquet",
    23_940_850,
    "sha256",
    "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
)
HUB = Source("huggingface.co", (_TRAIN_TABLE, _TEST_TABLE), official.BINARY, unpack_tables)
SOURCES = (HUB, OFFICIAL_SITE)  # the official site last: it has been down to 50 kB/s since the middle of 2026


def fetch(data_dir: Path, *, sources: Sequence[Source] = SOURCES) -> None:
    """Returns when official files are in `data_dir`; downloads them if there are none.

    Any number of processes may call this at once: one works, the others wait, and if that one is
    killed the next resumes its partial files. An archive that was put into `data_dir` by hand is
    taken instead of the network. Raises `NoDataError` with the steps to take by hand,
    `InputError` for a damaged archive, `OutOfResourcesError` for a full disk.
    """
    if official.locate(data_dir):
        return
    try:
        with _locked(data_dir):
            if not official.locate(data_dir):  # else another process was first
                _install_from_first(sources, data_dir)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResourcesError(f"{data_dir}: no room for CIFAR-10 ({error}); it takes 400 MB") from None
        raise NoDataError(f"{data_dir}: cannot hold CIFAR-10 ({error}); give another --data-dir") from None


def _install_from_first(sources: Sequence[Source], data_dir: Path) -> None:
    """Installs from the archive put there by hand, or else from the first source that delivers."""
    by_hand = data_dir / ARCHIVE.name
    if by_hand.exists():
        _check(by_hand, ARCHIVE, advice="; download it again")
        return _install(OFFICIAL_SITE, [by_hand], data_dir)
    reasons = []
    for source in sources:
        try:
            _install(source, [_download(file, _part(file, data_dir)) for file in source.files], data_dir)
            return _remove_parts(sources, data_dir)
        except InputError as error:
            reasons.append(f"{source.name}: {error}")
    raise NoDataError(
        f"{data_dir}: holds no CIFAR-10 and none could be downloaded ({'; '.join(reasons)}); get {ARCHIVE.url} "
        f"with another machine or later and put it into {data_dir}, or take --dataset synthetic"
    )


def _install(source: Source, files: Sequence[Path], data_dir: Path) -> None:
    """Unpacks into a folder beside the final one, which takes its name only when all of it is verified."""
    folder = data_dir / f"{source.form.folder}.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with Console(stderr=True).status(f"unpacking and verifying {source.form.folder}"):
            source.unpack(files, folder)
            official.verify_folder(folder, source.form)
        folder.rename(data_dir / source.form.folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(file: RemoteFile, part: Path) -> Path:
    """`part` with all bytes of the file and the right digest; `InputError` if the source fails."""
    resumed = part.exists()
    _transfer(file, part)
    try:
        _check(part, file, advice="")
    except InputError:
        part.unlink()
        if not resumed:
            raise
        return _download(file, part)  # the bytes of the earlier attempt may be to blame
    return part


def _transfer(file: RemoteFile, part: Path) -> None:
    """Appends to `part` until it is complete, over as many connections as each bring new bytes."""
    with _progress() as progress:
        task = progress.add_task(file.name, total=file.num_bytes)
        while (num_before := _size(part)) < file.num_bytes:
            reason = "the connection ended early"
            try:
                for num_bytes in _receive(file, part, num_before):
                    progress.update(task, completed=num_bytes)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = _in_words(error)
            if _size(part) <= num_before:
                raise InputError(f"{file.name}: {reason} at byte {num_before} of {file.num_bytes}")


def _receive(file: RemoteFile, part: Path, offset: int) -> Iterator[int]:
    """One connection: writes what it sends to `part`, from `offset` on if the server can; yields the size."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    with requests.get(file.url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        start = offset if response.status_code == requests.codes.partial_content else 0
        length = response.headers.get("Content-Length")
        if length not in (None, str(file.num_bytes - start)):  # a login page, or another version
            raise InputError(f"{file.name}: the server has {length} bytes, expected {file.num_bytes - start}")
        with part.open("ab" if start else "wb") as stream:
            # The raw stream: some servers call a .tar.gz gzip-encoded, and requests would unpack it.
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                stream.write(chunk[: file.num_bytes - stream.tell()])
                yield stream.tell()
                if stream.tell() == file.num_bytes:
                    return  # whatever else is sent is not wanted


def _check(path: Path, file: RemoteFile, *, advice: str) -> None:
    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, lambda: hashlib.new(file.algorithm, usedforsecurity=False)).hexdigest()
    if actual != file.digest:
        raise InputError(
            f"{path}: damaged, {file.algorithm.upper()} is {actual}, expected {file.digest} "
            f"({_size(path)} bytes, expected {file.num_bytes}){advice}"
        )


def _part(file: RemoteFile, data_dir: Path) -> Path:
    return data_dir / f"{file.name}.part"


def _remove_parts(sources: Sequence[Source], data_dir: Path) -> None:
    for source in sources:
        for file in source.files:
            _part(file, data_dir).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _in_words(error: Exception) -> str:
    """The kind of a network error: the libraries' own texts are paragraphs."""
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that dies."""
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(data_dir / ".fetch.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"{data_dir}: another process is fetching the data; waiting for it", file=sys.stderr)
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _progress() -> Progress:
    """A bar with megabytes, speed and time left on a terminal; nothing where stderr is a file."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty())
