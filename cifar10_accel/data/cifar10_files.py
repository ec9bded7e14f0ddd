"""Official CIFAR-10 files: names, digests and verified reading.

Both published formats are supported. `cifar-10-batches-py` contains seven Python pickles, `cifar-10-batches-bin` six
files of records (one label byte, then 3072 pixel bytes, channels first). Images, labels and their order are the same in
both. The digest of every file is checked before the file is parsed.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cifar10_accel.errors import InputError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES_PER_BATCH = 10_000
PIXELS_PER_IMAGE = 3 * 32 * 32
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


class NoDataError(InputError):
    """There are no official files, and downloading them failed if it was tried."""


class FileFormat(NamedTuple):
    """A published format of the data set: its folder and the digest of every file in it."""

    folder: str
    suffix: str
    algorithm: str
    digests: dict[str, str]


PICKLED = FileFormat(
    "cifar-10-batches-py",
    "",
    "md5",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
BINARY = FileFormat(
    "cifar-10-batches-bin",
    ".bin",
    "sha256",
    {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
)


class Batch(NamedTuple):
    """The images and labels of one file, as stored."""

    labels: npt.NDArray[np.uint8]  # (N,) uint8, 0 .. 9
    pixels: npt.NDArray[np.uint8]  # (N, 3072) uint8, channels first


def locate(data_dir: Path) -> tuple[Path, FileFormat] | None:
    """Find the folder with the official files: `data_dir` itself or the folder of the published name in it.

    Returns:
        The folder and its format; None if there is no official file at all. An incomplete folder is returned too:
        `verify` and `read` report the missing files.
    """
    for file_format in (PICKLED, BINARY):
        for folder in (data_dir / file_format.folder, data_dir):
            if any((folder / name).exists() for name in file_format.digests):
                return folder, file_format
    return None


def verify(data_dir: Path) -> list[tuple[Path, str]]:
    """Check that all official files are present and undamaged.

    Returns:
        The path and a description of the state of every file.

    Raises:
        NoDataError: There is no official file at all.
        InputError: A file is missing or damaged; the message has its path and the expected and the actual digest.
    """
    found = locate(data_dir)
    if found is None:
        raise NoDataError(f"{data_dir}: no CIFAR-10 files; run `cifar10-accel data fetch --data-dir {data_dir}`")
    return verify_folder(*found)


def verify_folder(folder: Path, file_format: FileFormat) -> list[tuple[Path, str]]:
    """Check one folder of a known format, see `verify`."""
    for name in file_format.digests:
        _read_verified(folder / name, file_format)
    return [(folder / name, f"{file_format.algorithm.upper()} as published") for name in file_format.digests]


def read(folder: Path, file_format: FileFormat) -> tuple[Batch, Batch]:
    """Read the 50,000 training and the 10,000 test images of a folder, in the official order.

    Raises:
        InputError: A file is missing or damaged.
    """
    parse = parse_pickle if file_format is PICKLED else parse_records
    *train, test = (
        parse(_read_verified(path, file_format), path)
        for path in (folder / (name + file_format.suffix) for name in (*TRAIN_BATCHES, "test_batch"))
    )
    labels, pixels = zip(*train, strict=True)
    return Batch(np.concatenate(labels), np.concatenate(pixels)), test


def parse_records(raw: bytes, path: Path) -> Batch:
    """Parse the bytes of a `.bin` file.

    Raises:
        InputError: The file has another size, or labels above 9.
    """
    records = np.frombuffer(raw, np.uint8)
    if records.size != IMAGES_PER_BATCH * (1 + PIXELS_PER_IMAGE):
        raise InputError(f"{path}: has {records.size} bytes, expected {IMAGES_PER_BATCH * (1 + PIXELS_PER_IMAGE)}")
    records = records.reshape(IMAGES_PER_BATCH, 1 + PIXELS_PER_IMAGE)
    return _with_checked_labels(Batch(records[:, 0], records[:, 1:]), path)


def parse_pickle(raw: bytes, path: Path) -> Batch:
    """Parse the bytes of a pickle without executing code from it.

    Raises:
        InputError: The pickle refers to anything but NumPy arrays, or is not a batch of images.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
        labels, pixels = np.asarray(content[b"labels"]), np.asarray(content[b"data"])
    except Exception as error:  # a damaged pickle can raise any type of error
        raise InputError(f"{path}: is not a CIFAR-10 batch ({type(error).__name__}: {error})") from None
    expected = (IMAGES_PER_BATCH, PIXELS_PER_IMAGE)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise InputError(f"{path}: data is {pixels.dtype} of shape {pixels.shape}, expected uint8 of shape {expected}")
    if labels.shape != expected[:1] or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected {expected[0]} integers")
    return _with_checked_labels(Batch(labels, pixels), path)


def digest_of(raw: Any, algorithm: str) -> str:
    """Return the hex digest of bytes or of a contiguous array."""
    return hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that builds NumPy arrays and plain values only, and rejects any other class or function."""

    # Taken from an array, because NumPy versions define it in different modules.
    _RECONSTRUCT = np.empty(0).__reduce__()[0]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return self._RECONSTRUCT
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which a batch does not need")


def _with_checked_labels(batch: Batch, path: Path) -> Batch:
    low, high = int(batch.labels.min()), int(batch.labels.max())
    if low < 0 or high >= len(CLASS_NAMES):
        raise InputError(f"{path}: labels are {low} .. {high}, expected 0 .. {len(CLASS_NAMES) - 1}")
    return Batch(batch.labels.astype(np.uint8), batch.pixels)


def _read_verified(path: Path, file_format: FileFormat) -> bytes:
    """Return the bytes of an official file after checking its digest."""
    advice = f"remove {path.parent} and run `cifar10-accel data fetch`"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); if it is missing, {advice}") from None
    actual, expected = digest_of(raw, file_format.algorithm), file_format.digests[path.name]
    if actual != expected:
        raise InputError(
            f"{path}: damaged, {file_format.algorithm.upper()} is {actual}, expected {expected} "
            f"({len(raw)} bytes); {advice}"
        )
    return raw
