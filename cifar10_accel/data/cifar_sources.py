"""Sources of the official CIFAR files: what to download, with sizes and digests, and how it is unpacked.

They are the tar archives of the official site and, for CIFAR-10, the parquet tables on the Hugging Face Hub.
"""

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from cifar10_accel.data.cifar_files import (
    CIFAR10,
    CIFAR10_BINARY,
    CIFAR10_PICKLED,
    CIFAR100_PICKLED,
    PIXELS_PER_IMAGE,
    FileFormat,
    digest_of,
)
from cifar10_accel.errors import InputError

IGNORED_MEMBERS = ("readme.html", "file.txt~")  # of the archive of CIFAR-10 and of CIFAR-100
MAX_MEMBER_BYTES = 192 << 20  # the largest file, the training images of CIFAR-100, has 155 MB


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
    file_format: FileFormat
    unpack: Callable[[Sequence[Path], Path, FileFormat], None]  # downloaded files, empty folder, format to write


def unpack_archive(archives: Sequence[Path], folder: Path, file_format: FileFormat) -> None:
    """Write the official pickles of a tar archive to `folder`.

    Members are copied by content to the known file names, so paths, links and modes in the archive have no effect.

    Raises:
        InputError: The archive has an unexpected member.
    """
    root = file_format.folder
    known = {f"{root}/{name}": name for name in file_format.digests}
    ignored = {root, *(f"{root}/{name}" for name in IGNORED_MEMBERS)}
    for path in archives:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in ignored:
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if member.name not in known or content is None or member.size > MAX_MEMBER_BYTES:
                    raise InputError(f"{path}: member {member.name!r} ({member.size} bytes) does not belong in it")
                (folder / known[member.name]).write_bytes(content.read())


def unpack_tables(tables: Sequence[Path], folder: Path, file_format: FileFormat) -> None:
    """Write the six official binary files of CIFAR-10 from parquet tables of PNG images and labels.

    The Hub's tables have the batches in another order (4, 3, 2, 5, 1), so each 10,000 images are identified by their
    digest.

    Raises:
        InputError: The images are not an official batch.
    """
    names = {digest: name for name, digest in file_format.digests.items()}
    num_images = CIFAR10.num_images["test_batch"]  # every file has as many
    for table in tables:
        records = _read_records(table)
        for start in range(0, len(records), num_images):
            batch = records[start : start + num_images]
            digest = digest_of(batch, file_format.algorithm)
            if digest not in names:
                raise InputError(f"{table}: the batch from image {start} on is not official (SHA256 {digest})")
            (folder / names[digest]).write_bytes(batch.tobytes())


def _read_records(table: Path) -> npt.NDArray[np.uint8]:
    """Return the rows of a parquet table as records of the binary format: (N, 3073) uint8, C-contiguous."""
    from PIL import Image
    from pyarrow import parquet

    columns = parquet.read_table(table, columns=["img", "label"])
    pngs = columns["img"].combine_chunks().field("bytes")
    records = np.empty((len(pngs), 1 + PIXELS_PER_IMAGE), dtype=np.uint8)
    records[:, 0] = columns["label"].to_numpy()
    for record, png in zip(records, pngs, strict=True):
        with Image.open(io.BytesIO(png.as_py())) as image:
            record[1:] = np.asarray(image).transpose(2, 0, 1).ravel()
    return records


_CIFAR10_ARCHIVE = RemoteFile(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071, "md5", "c58f30108f718f92721af3b95e74349a"
)
_CIFAR100_ARCHIVE = RemoteFile(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437, "md5", "eb9058c3a382ffc7106e4002c42a8d85"
)
OFFICIAL_SITE = {
    "cifar10": Source("www.cs.toronto.edu", (_CIFAR10_ARCHIVE,), CIFAR10_PICKLED, unpack_archive),
    "cifar100": Source("www.cs.toronto.edu", (_CIFAR100_ARCHIVE,), CIFAR100_PICKLED, unpack_archive),
}
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
HUB = Source("huggingface.co", (_TRAIN_TABLE, _TEST_TABLE), CIFAR10_BINARY, unpack_tables)
SOURCES = {  # the official site last: it is slow, about 50 kB/s in 2026
    "cifar10": (HUB, OFFICIAL_SITE["cifar10"]),
    "cifar100": (OFFICIAL_SITE["cifar100"],),
}
