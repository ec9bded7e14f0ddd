"""Download of CIFAR-10: resumable, verified, installed atomically, by one process at a time.

The two sources are the tar archive of the official site and the parquet tables on the Hugging Face Hub.
"""

import errno
import hashlib
import io
import logging
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import requests
import urllib3
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifar10_accel.data import cifar10_files
from cifar10_accel.data.cifar10_files import NoDataError
from cifar10_accel.errors import InputError, OutOfResourcesError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0  # per address of a host; short, so that a machine without network fails fast
READ_SECONDS = 30.0  # without a single byte; the official site is slow, but steady
CHUNK_BYTES = 1 << 16
POLL_SECONDS = 0.2
MAX_MEMBER_BYTES = 32 << 20  # the largest file in the archive has 31,035,999 bytes


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, with its size and digest."""

    url: str
    num_bytes: int
    algorithm: str
    digest: str

    @property
    def name(self) -> str:
        """File name in the URL."""
        return PurePosixPath(urlsplit(self.url).path).name


@dataclass(frozen=True)
class Source:
    """Files to download, and the function that writes the official files of one format from them."""

    name: str
    files: tuple[RemoteFile, ...]
    file_format: cifar10_files.FileFormat
    unpack: Callable[[Sequence[Path], Path], None]  # called with the downloaded files and an empty folder


def unpack_archive(archives: Sequence[Path], folder: Path) -> None:
    """Write the seven official pickles of the tar archive to `folder`.

    Members are copied by content to the known file names, so paths, links and modes in the archive have no effect.

    Raises:
        InputError: The archive has an unexpected member.
    """
    root = cifar10_files.PICKLED.folder
    known = {f"{root}/{name}": name for name in cifar10_files.PICKLED.digests}
    for path in archives:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in (root, f"{root}/readme.html"):
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if member.name not in known or content is None or member.size > MAX_MEMBER_BYTES:
                    raise InputError(f"{path}: member {member.name!r} ({member.size} bytes) does not belong in it")
                (folder / known[member.name]).write_bytes(content.read())


def unpack_tables(tables: Sequence[Path], folder: Path) -> None:
    """Write the six official binary files from parquet tables of PNG images and labels.

    The Hub's tables have the batches in another order (4, 3, 2, 5, 1), so each 10,000 images are identified by their
    digest.

    Raises:
        InputError: The images are not an official batch.
    """
    names = {digest: name for name, digest in cifar10_files.BINARY.digests.items()}
    for table in tables:
        records = _read_records(table)
        for start in range(0, len(records), cifar10_files.IMAGES_PER_BATCH):
            batch = records[start : start + cifar10_files.IMAGES_PER_BATCH]
            digest = cifar10_files.digest_of(batch, cifar10_files.BINARY.algorithm)
            if digest not in names:
                raise InputError(f"{table}: the batch from image {start} on is not official (SHA256 {digest})")
            (folder / names[digest]).write_bytes(batch.tobytes())


def _read_records(table: Path) -> npt.NDArray[np.uint8]:
    """Return the rows of a parquet table as records of the binary format: (N, 3073) uint8, C-contiguous."""
    from PIL import Image
    from pyarrow import parquet

    columns = parquet.read_table(table, columns=["img", "label"])
    pngs = columns["img"].combine_chunks().field("bytes")
    records = np.empty((len(pngs), 1 + cifar10_files.PIXELS_PER_IMAGE), dtype=np.uint8)
    records[:, 0] = columns["label"].to_numpy()
    for record, png in zip(records, pngs, strict=True):
        with Image.open(io.BytesIO(png.as_py())) as image:
            record[1:] = np.asarray(image).transpose(2, 0, 1).ravel()
    return records


ARCHIVE = RemoteFile(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071, "md5", "c58f30108f718f92721af3b95e74349a"
)
OFFICIAL_SITE = Source("www.cs.toronto.edu", (ARCHIVE,), cifar10_files.PICKLED, unpack_archive)
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
HUB = Source("huggingface.co", (_TRAIN_TABLE, _TEST_TABLE), cifar10_files.BINARY, unpack_tables)
SOURCES = (HUB, OFFICIAL_SITE)  # the official site last: it is slow, about 50 kB/s in 2026


def fetch(data_dir: Path, *, sources: Sequence[Source] = SOURCES) -> None:
    """Download the official files to `data_dir`, unless they are there.

    Any number of processes may call this at once: one downloads, the others wait. If that process is killed, the next
    one resumes its partial files. An archive that the user put into `data_dir` is used instead of the network.

    Args:
        data_dir: The folder of the data set; created if necessary.
        sources: Sources to try, in this order.

    Raises:
        NoDataError: No source delivered the files; the message has the steps for a manual download.
        InputError: The archive that the user put into `data_dir` is damaged.
        OutOfResourcesError: The disk is full.
    """
    if cifar10_files.locate(data_dir):
        return
    try:
        with _locked(data_dir):
            if not cifar10_files.locate(data_dir):  # another process may have been first
                _install_first_available(sources, data_dir)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResourcesError(f"{data_dir}: no space for CIFAR-10 ({error}); it takes 400 MB") from None
        raise NoDataError(f"{data_dir}: cannot be written ({error}); give another --data-dir") from None


def _install_first_available(sources: Sequence[Source], data_dir: Path) -> None:
    """Install from the archive that the user put there, or else from the first source that works."""
    archive = data_dir / ARCHIVE.name
    if archive.exists():
        _verify(archive, ARCHIVE, advice="; download it again")
        return _install(OFFICIAL_SITE, [archive], data_dir)
    reasons = []
    for source in sources:
        try:
            _install(source, [_download(file, _part(file, data_dir)) for file in source.files], data_dir)
            return _remove_parts(sources, data_dir)
        except InputError as error:
            reasons.append(f"{source.name}: {error}")
    raise NoDataError(
        f"{data_dir}: contains no CIFAR-10, and the download failed ({'; '.join(reasons)}); get {ARCHIVE.url} "
        f"with another machine or later and put it into {data_dir}, or give --dataset synthetic"
    )


def _install(source: Source, files: Sequence[Path], data_dir: Path) -> None:
    """Unpack into a temporary folder beside the final one, and rename it when all files are verified."""
    file_format = source.file_format
    folder = data_dir / f"{file_format.folder}.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with Console(stderr=True).status(f"unpacking and verifying {file_format.folder}"):
            source.unpack(files, folder)
            cifar10_files.verify_folder(folder, file_format)
        folder.rename(data_dir / file_format.folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(file: RemoteFile, part: Path) -> Path:
    """Download to `part`, verify it and return its path; `InputError` if the source fails."""
    resumed = part.exists()
    _transfer(file, part)
    try:
        _verify(part, file, advice="")
    except InputError:
        part.unlink()
        if not resumed:
            raise
        return _download(file, part)  # once more from the start: the resumed bytes may be the damaged ones
    return part


def _transfer(file: RemoteFile, part: Path) -> None:
    """Append to `part` until it is complete; reconnect as long as every connection delivers new bytes."""
    with _progress() as progress:
        task = progress.add_task(file.name, total=file.num_bytes)
        while (num_before := _size(part)) < file.num_bytes:
            reason = "the connection ended early"
            try:
                for num_bytes in _receive(file, part, num_before):
                    progress.update(task, completed=num_bytes)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = _error_name(error)
            if _size(part) <= num_before:
                raise InputError(f"{file.name}: {reason} at byte {num_before} of {file.num_bytes}")


def _receive(file: RemoteFile, part: Path, offset: int) -> Iterator[int]:
    """Write the data of one connection to `part`, from `offset` on if the server supports it; yield the file size."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    with requests.get(file.url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        start = offset if response.status_code == requests.codes.partial_content else 0
        length = response.headers.get("Content-Length")
        if length not in (None, str(file.num_bytes - start)):  # for example a login page
            raise InputError(f"{file.name}: the server has {length} bytes, expected {file.num_bytes - start}")
        with part.open("ab" if start else "wb") as stream:
            # The raw stream, because some servers declare a .tar.gz as gzip-encoded and requests would decompress it.
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                stream.write(chunk[: file.num_bytes - stream.tell()])
                yield stream.tell()
                if stream.tell() == file.num_bytes:
                    return  # ignore anything beyond the expected size


def _verify(path: Path, file: RemoteFile, *, advice: str) -> None:
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


def _error_name(error: Exception) -> str:
    """Return the type of a network error, since the messages of the libraries are several lines long."""
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Context that one process can enter at a time; the system releases the lock of a process that dies."""
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(data_dir / ".fetch.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("%s: another process is downloading the data; waiting for it", data_dir)
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _progress() -> Progress:
    """Return a progress bar with size, speed and remaining time; disabled if stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty())
