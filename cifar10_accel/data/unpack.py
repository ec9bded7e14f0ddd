"""Downloaded files to official files: the published tar archive, and the Hub's parquet tables."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar10_accel.data import official
from cifar10_accel.errors import InputError

MAX_MEMBER_BYTES = 32 << 20  # the largest has 31,035,999


def unpack_archive(archives: Sequence[Path], folder: Path) -> None:
    """Writes the seven official pickles in a tar archive into `folder`: nothing else, nowhere else.

    Members are copied by content under the names known here, so no path, link or mode in the archive
    takes effect. Raises `InputError` at the first member that does not belong.
    """
    root = official.PICKLED.folder
    known = {f"{root}/{name}": name for name in official.PICKLED.digests}
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
    """Writes the six official binary files from parquet tables of PNG images and labels.

    The Hub's tables hold the batches in another order (4, 3, 2, 5, 1), so each run of 10,000 images is
    named by its digest. Raises `InputError` for images that are none of the official batches.
    """
    names = {digest: name for name, digest in official.BINARY.digests.items()}
    for table in tables:
        records = _records_in(table)  # (N, 3073) uint8
        for start in range(0, len(records), official.IMAGES_PER_BATCH):
            batch = records[start : start + official.IMAGES_PER_BATCH]
            digest = official.digest_of(batch, official.BINARY.algorithm)
            if digest not in names:
                raise InputError(f"{table}: images {start} and on are no official batch (SHA256 {digest})")
            (folder / names[digest]).write_bytes(batch.tobytes())


def _records_in(table: Path) -> npt.NDArray[np.uint8]:
    """The rows of a parquet table as records of the binary form: (N, 3073) uint8, C-contiguous."""
    from PIL import Image
    from pyarrow import parquet

    columns = parquet.read_table(table, columns=["img", "label"])
    pngs = columns["img"].combine_chunks().field("bytes")
    records = np.empty((len(pngs), 1 + official.PIXELS_PER_IMAGE), dtype=np.uint8)
    records[:, 0] = columns["label"].to_numpy()
    for record, png in zip(records, pngs, strict=True):
        with Image.open(io.BytesIO(png.as_py())) as image:
            record[1:] = np.asarray(image).transpose(2, 0, 1).ravel()
    return records
