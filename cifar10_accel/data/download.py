"""Download of CIFAR-10 and CIFAR-100: resumable, verified, installed atomically, by one process at a time."""

import errno
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
import urllib3
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifar10_accel.data import cifar_sources
from cifar10_accel.data.cifar_files import CifarFiles, NoDataError
from cifar10_accel.data.cifar_sources import RemoteFile, Source
from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.formatting import error_line

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0  # per address of a host; short, so that a machine without network fails fast
READ_SECONDS = 30.0  # without a single byte; the official site is slow, but steady
CHUNK_BYTES = 1 << 16
POLL_SECONDS = 0.2


def fetch(official: CifarFiles, data_dir: Path, *, sources: Sequence[Source] | None = None) -> None:
    """Download the official files of a data set to `data_dir`, unless they are there.

    Any number of processes may call this at once: one downloads, the others wait. If that process is killed, the next
    one resumes its partial files. An archive that the user put into `data_dir` is used instead of the network.

    Args:
        official: The data set.
        data_dir: The folder of the data set; created if necessary.
        sources: Sources to try, in this order; None: those of the data set.

    Raises:
        NoDataError: No source delivered the files; the message has the steps for a manual download.
        InputError: The archive that the user put into `data_dir` is damaged.
        OutOfResourcesError: The disk is full.
    """
    if official.locate(data_dir):
        return
    if sources is None:
        sources = cifar_sources.SOURCES[official.dataset]
    try:
        with _locked(data_dir):
            if not official.locate(data_dir):  # another process may have been first
                _install_first_available(official, sources, data_dir)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResourcesError(f"{data_dir}: no space for {official.title} ({error}); it takes 400 MB") from None
        raise NoDataError(f"{data_dir}: cannot be written ({error}); give another --data-dir") from None


def _install_first_available(official: CifarFiles, sources: Sequence[Source], data_dir: Path) -> None:
    """Install from the archive that the user put there, or else from the first source that works."""
    site = cifar_sources.OFFICIAL_SITE[official.dataset]
    (archive,) = site.files
    given = data_dir / archive.name
    if given.exists():
        _verify(given, archive, advice="; download it again")
        return _install(official, site, [given], data_dir)
    _require_usable_network_settings(data_dir, sources)
    reasons = []
    for source in sources:
        try:
            _install(official, source, [_download(file, _part(file, data_dir)) for file in source.files], data_dir)
            return _remove_parts(sources, data_dir)
        except InputError as error:
            reasons.append(f"{source.name}: {error}")
    raise NoDataError(
        f"{data_dir}: contains no {official.title}, and the download failed ({'; '.join(reasons)}); get {archive.url} "
        f"with another machine or later and put it into {data_dir}, or give --dataset synthetic"
    )


def _require_usable_network_settings(data_dir: Path, sources: Sequence[Source]) -> None:
    """Raise `NoDataError` if the certificates or the proxy that the environment names cannot work with any source."""
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # the first that is set counts, as in requests
        bundle = os.environ.get(variable)
        if bundle and not os.path.exists(bundle):
            raise NoDataError(
                f"{variable}: {bundle} does not exist, so nothing can be downloaded to {data_dir}; correct the "
                "variable, or unset it"
            )
        if bundle:
            break
    for url in [file.url for source in sources for file in source.files]:
        proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)) or ""
        if proxy.lower().startswith("socks") and importlib.util.find_spec("socks") is None:
            raise NoDataError(
                f"the proxy {_without_password(proxy)} needs PySocks for the download to {data_dir}: "
                "pip install pysocks, or unset HTTPS_PROXY and ALL_PROXY"
            )


def _without_password(url: str) -> str:
    return re.sub("//[^/@]*@", "//...@", url)


def _install(official: CifarFiles, source: Source, files: Sequence[Path], data_dir: Path) -> None:
    """Unpack into a temporary folder beside the final one, and rename it when all files are verified."""
    file_format = source.file_format
    folder = data_dir / f"{file_format.folder}.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with Console(stderr=True, markup=False).status(f"unpacking and verifying {file_format.folder}"):
            source.unpack(files, folder, file_format)
            official.verify_folder(folder, file_format)
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
    """Return the type of a network error, since most messages of the libraries are several lines long."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    is_about_settings = isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidURL)
    text = f" ({_without_password(error_line(error))})" if is_about_settings else ""
    return f"{type(error).__name__}{text}"


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
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True, markup=False), disable=not sys.stderr.isatty()
    )
