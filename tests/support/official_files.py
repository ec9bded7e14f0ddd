"""Small replacements for the official CIFAR files, and a web server that serves them, with faults if wanted."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from cifar10_accel.data.cifar_files import (
    CIFAR10,
    CIFAR10_BINARY,
    CIFAR10_PICKLED,
    CIFAR100,
    CIFAR100_PICKLED,
    CifarFiles,
)
from cifar10_accel.data.cifar_sources import OFFICIAL_SITE, RemoteFile, Source, unpack_archive, unpack_tables

IMAGES_PER_BATCH = 20
CIFAR100_IMAGES = {"train": 200, "test": 100}
CIFAR100_CLASSES = [f"class_{number:02}" for number in reversed(range(100))]
ORDER_IN_TABLE = (4, 3, 2, 5, 1)


@dataclass
class Page:
    """Response of the server to requests for one path."""

    content: bytes
    status: int = 200
    has_ranges: bool = True
    has_length: bool = True
    bytes_per_connection: int | None = None  # then the connection is closed, in the middle of the body
    num_stalled_connections: int = 0  # they send half of a whole file or nothing of a range, and stay open


@dataclass
class Server:
    """Pages by path, and a log of the requests."""

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range header
    released: threading.Event = field(default_factory=threading.Event)  # ends every stall


def use_small_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    """Replace the official files by files of a few images; return folder -> file name -> bytes, for every format.

    The batches of CIFAR-10 have 20 images each. CIFAR-100 has two training images and one test image of each class, in
    a random order, and coarse labels that are another function of the class.
    """
    files: dict[str, dict[str, bytes]] = {CIFAR10_PICKLED.folder: {}, CIFAR10_BINARY.folder: {}}
    for number, name in enumerate(CIFAR10.num_images):
        rng = np.random.default_rng(number)
        labels = rng.permutation(np.arange(IMAGES_PER_BATCH) % 10)
        pixels = rng.integers(0, 256, (IMAGES_PER_BATCH, 3072), dtype=np.uint8)
        monkeypatch.setitem(CIFAR10.num_images, name, IMAGES_PER_BATCH)
        files[CIFAR10_PICKLED.folder][name] = pickled({b"labels": labels.tolist(), b"data": pixels})
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        files[CIFAR10_BINARY.folder][f"{name}.bin"] = records.tobytes()
    files[CIFAR10_PICKLED.folder]["batches.meta"] = pickled({b"num_vis": 3072})
    files[CIFAR100_PICKLED.folder] = small_cifar100()
    for name, num_images in CIFAR100_IMAGES.items():
        monkeypatch.setitem(CIFAR100.num_images, name, num_images)
    for file_format in (CIFAR10_PICKLED, CIFAR10_BINARY, CIFAR100_PICKLED):
        for name, content in files[file_format.folder].items():
            monkeypatch.setitem(file_format.digests, name, hashlib.new(file_format.algorithm, content).hexdigest())
    return files


def small_cifar100() -> dict[str, bytes]:
    """Return small files with the keys of the official ones of CIFAR-100: file name -> bytes."""
    files = {}
    for name, num_images in CIFAR100_IMAGES.items():
        labels, pixels = small_cifar100_arrays(num_images)
        batch = {
            b"filenames": [b"image.png"] * num_images,
            b"batch_label": b"a batch",
            b"fine_labels": labels.tolist(),
            b"coarse_labels": (labels % 20).tolist(),
            b"data": pixels,
        }
        files[name] = python2_pickled(batch)
    names = {b"fine_label_names": CIFAR100_CLASSES, b"coarse_label_names": [f"group_{number}" for number in range(20)]}
    return files | {"meta": python2_pickled({key: [name.encode() for name in value] for key, value in names.items()})}


def small_cifar100_arrays(num_images: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the fine labels (N,) and the pixels (N, 3072), channels first, of a file of N images of all classes."""
    rng = np.random.default_rng(num_images)
    labels = rng.permutation(np.arange(num_images) % 100)
    return labels, rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)


def python2_pickled(value: Any) -> bytes:
    """Pickle as Python 2 did, which wrote the official files: protocol 2, byte strings, NumPy's names of that time."""
    return b"\x80\x02" + _python2_code(value) + b"."


def _python2_code(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2_code(item) for pair in value.items() for item in pair) + b"u"
    if isinstance(value, list | tuple):
        items = b"".join(map(_python2_code, value))
        return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, np.ndarray):
        dtype = b"cnumpy\ndtype\n" + _python2_code((b"u1", 0, 1)) + b"R"
        dtype += _python2_code((3, b"|", None, None, None, -1, -1, 0)) + b"b"
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2_code((0,)) + b"U\x01btR"
        state = _python2_code(1) + _python2_code(value.shape) + dtype + b"\x89" + _python2_code(value.tobytes())
        return array + b"(" + state + b"tb"
    return b"N" if value is None else b"J" + struct.pack("<i", value)


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=4)  # protocol 5 stores arrays by another function


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive_of(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    """Return a tar archive like the official ones: a folder entry, a readme, the files; then the extra members.

    The same files give the same bytes, so that another process can compute the digest.
    """
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        is_cifar100 = "meta" in files
        folder = tarfile.TarInfo((CIFAR100_PICKLED if is_cifar100 else CIFAR10_PICKLED).folder)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in {"file.txt~" if is_cifar100 else "readme.html": b"", **files}.items():
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def table_of(*batches: bytes) -> bytes:
    """Return a parquet table like the Hub's with batches in the binary format."""
    records = np.concatenate([np.frombuffer(batch, np.uint8).reshape(-1, 3073) for batch in batches])
    pngs = [{"bytes": _png(record[1:]), "path": None} for record in records]
    table = pyarrow.table({"img": pngs, "label": records[:, 0].astype(np.int64)})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


def archive_source(server: Server, content: bytes, official: CifarFiles = CIFAR10) -> Source:
    """Serve the archive of a data set as /cifar-10-python.tar.gz or /cifar-100-python.tar.gz."""
    (archive,) = OFFICIAL_SITE[official.dataset].files
    return Source("site", (_serve(server, archive.name, content, "md5"),), official.formats[0], unpack_archive)


def tables_source(server: Server, files: dict[str, bytes]) -> Source:
    """Serve two tables like the Hub's as /train.parquet and /test.parquet."""
    train = table_of(*(files[f"data_batch_{number}.bin"] for number in ORDER_IN_TABLE))
    tables = (
        _serve(server, "train.parquet", train, "sha256"),
        _serve(server, "test.parquet", table_of(files["test_batch.bin"]), "sha256"),
    )
    return Source("hub", tables, CIFAR10_BINARY, unpack_tables)


@contextmanager
def serving() -> Iterator[Server]:
    """Context that runs a server on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.daemon_threads = True
        state = Server(f"http://127.0.0.1:{http.server_port}")
        http.state = state  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            http.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        state: Server = self.server.state  # type: ignore[attr-defined]
        state.requests.append((self.path, self.headers.get("Range")))
        page = state.pages[self.path]
        start = self._start_of_range() if page.has_ranges else 0
        body = page.content[start:]
        self.send_response(206 if start and page.status == 200 else page.status)
        if page.has_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if page.num_stalled_connections > 0:
            page.num_stalled_connections -= 1
            self.wfile.write(body[: 0 if start else len(body) // 2])
            self.wfile.flush()
            state.released.wait()
        else:
            with suppress(ConnectionError):  # the client may close the connection early
                self.wfile.write(body[: page.bytes_per_connection])

    def _start_of_range(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing; tests read `Server.requests`."""


def _serve(server: Server, name: str, content: bytes, algorithm: str) -> RemoteFile:
    server.pages[f"/{name}"] = Page(content)
    digest = hashlib.new(algorithm, content).hexdigest()
    return RemoteFile(f"{server.url}/{name}", len(content), algorithm, digest)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = np.ascontiguousarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
