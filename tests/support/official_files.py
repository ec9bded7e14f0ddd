"""Small replacements for the official CIFAR-10 files, and a web server that serves them, with faults if wanted."""

import gzip
import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from cifar10_accel.data import cifar10_files, download
from cifar10_accel.data.download import unpack_archive, unpack_tables

IMAGES_PER_BATCH = 20
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
    """Replace the official batches by batches of 20 images; return folder -> file name -> bytes, for both formats."""
    monkeypatch.setattr(cifar10_files, "IMAGES_PER_BATCH", IMAGES_PER_BATCH)
    files: dict[str, dict[str, bytes]] = {cifar10_files.PICKLED.folder: {}, cifar10_files.BINARY.folder: {}}
    for number, name in enumerate((*cifar10_files.TRAIN_BATCHES, "test_batch")):
        rng = np.random.default_rng(number)
        labels = rng.permutation(np.arange(IMAGES_PER_BATCH) % 10)
        pixels = rng.integers(0, 256, (IMAGES_PER_BATCH, 3072), dtype=np.uint8)
        files[cifar10_files.PICKLED.folder][name] = pickled({b"labels": labels.tolist(), b"data": pixels})
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        files[cifar10_files.BINARY.folder][f"{name}.bin"] = records.tobytes()
    files[cifar10_files.PICKLED.folder]["batches.meta"] = pickled({b"num_vis": 3072})
    for file_format in (cifar10_files.PICKLED, cifar10_files.BINARY):
        for name, content in files[file_format.folder].items():
            monkeypatch.setitem(file_format.digests, name, hashlib.new(file_format.algorithm, content).hexdigest())
    return files


def pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=4)  # protocol 5 stores arrays by another function


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive_of(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    """Return a tar archive like the official one: a folder entry, a readme, the files; then the extra members.

    The same files give the same bytes, so that another process can compute the digest.
    """
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        folder = tarfile.TarInfo(cifar10_files.PICKLED.folder)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in {"readme.html": b"read me", **files}.items():
            member = tarfile.TarInfo(f"{cifar10_files.PICKLED.folder}/{name}")
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


def archive_source(server: Server, content: bytes) -> download.Source:
    """Serve the archive as /cifar-10-python.tar.gz."""
    return download.Source(
        "site", (_serve(server, "cifar-10-python.tar.gz", content, "md5"),), cifar10_files.PICKLED, unpack_archive
    )


def tables_source(server: Server, files: dict[str, bytes]) -> download.Source:
    """Serve two tables like the Hub's as /train.parquet and /test.parquet."""
    train = table_of(*(files[f"data_batch_{number}.bin"] for number in ORDER_IN_TABLE))
    tables = (
        _serve(server, "train.parquet", train, "sha256"),
        _serve(server, "test.parquet", table_of(files["test_batch.bin"]), "sha256"),
    )
    return download.Source("hub", tables, cifar10_files.BINARY, unpack_tables)


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


def _serve(server: Server, name: str, content: bytes, algorithm: str) -> download.RemoteFile:
    server.pages[f"/{name}"] = Page(content)
    digest = hashlib.new(algorithm, content).hexdigest()
    return download.RemoteFile(f"{server.url}/{name}", len(content), algorithm, digest)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = np.ascontiguousarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
