"""The official CIFAR-10 files: names, digests, and bytes on disk to verified arrays.

Both published forms are read. `cifar-10-batches-py` holds seven Python pickles, `cifar-10-batches-bin`
six files of records (a label byte, then 3072 pixel bytes, channels first). Their images and labels are
the same, in the same order. Every file is compared with its digest before it is parsed.
(Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)
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
    """There are no official files, and (where that was tried) none could be had."""


class Form(NamedTuple):
    """One published form of the data set: its folder, and the digest of every file in it."""

    folder: str
    suffix: str
    algorithm: str
    digests: dict[str, str]


PICKLED = Form(
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
BINARY = Form(
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
    """The content of one file, as it is stored."""

    labels: npt.NDArray[np.uint8]  # (N,) uint8, 0 .. 9
    pixels: npt.NDArray[np.uint8]  # (N, 3072) uint8, channels first


def locate(data_dir: Path) -> tuple[Path, Form] | None:
    """The folder that holds official files, and their form; None if there is not one such file.

    The folder is `data_dir` itself or has its published name inside it. An incomplete folder is
    found too: what is missing from it is for `verify` and `read` to say.
    """
    for form in (PICKLED, BINARY):
        for folder in (data_dir / form.folder, data_dir):
            if any((folder / name).exists() for name in form.digests):
                return folder, form
    return None


def verify(data_dir: Path) -> list[tuple[Path, str]]:
    """Every official file under `data_dir` with its state, when all are there and none is damaged.

    Raises `InputError` that names the first file at fault, the digest expected and the one found,
    `NoDataError` if there is no file at all.
    """
    found = locate(data_dir)
    if found is None:
        raise NoDataError(f"{data_dir}: holds no CIFAR-10 files; run `cifar10-accel data fetch --data-dir {data_dir}`")
    return verify_folder(*found)


def verify_folder(folder: Path, form: Form) -> list[tuple[Path, str]]:
    """`verify` for one folder of known form."""
    for name in form.digests:
        _read_checked(folder / name, form)
    return [(folder / name, f"{form.algorithm.upper()} as published") for name in form.digests]


def read(folder: Path, form: Form) -> tuple[Batch, Batch]:
    """The 50,000 training and 10,000 test images of a folder, in the official order.

    Raises `InputError` for a file that is missing, damaged, or not what its digest promises.
    """
    parse = parse_pickle if form is PICKLED else parse_records
    first, *others, test = (
        parse(_read_checked(path, form), path)
        for path in (folder / (name + form.suffix) for name in (*TRAIN_BATCHES, "test_batch"))
    )
    train = [first, *others]
    return Batch(
        np.concatenate([batch.labels for batch in train]), np.concatenate([batch.pixels for batch in train])
    ), test


def parse_records(raw: bytes, path: Path) -> Batch:
    """The batch in the bytes of a `.bin` file; `InputError` if they are not whole records of it."""
    records = np.frombuffer(raw, np.uint8)
    if records.size != IMAGES_PER_BATCH * (1 + PIXELS_PER_IMAGE):
        raise InputError(f"{path}: has {records.size} bytes, expected {IMAGES_PER_BATCH * (1 + PIXELS_PER_IMAGE)}")
    records = records.reshape(IMAGES_PER_BATCH, 1 + PIXELS_PER_IMAGE)
    return _with_known_labels(Batch(records[:, 0], records[:, 1:]), path)


def parse_pickle(raw: bytes, path: Path) -> Batch:
    """The batch in the bytes of a pickle; `InputError` if it names code or is no batch of images."""
    try:
        content = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
        labels, pixels = np.asarray(content[b"labels"]), np.asarray(content[b"data"])
    except Exception as error:  # a damaged pickle can raise anything at all
        raise InputError(f"{path}: is no CIFAR-10 batch ({type(error).__name__}: {error})") from None
    expected = (IMAGES_PER_BATCH, PIXELS_PER_IMAGE)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise InputError(f"{path}: data is {pixels.dtype} of shape {pixels.shape}, expected uint8 of shape {expected}")
    if labels.shape != expected[:1] or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected {expected[0]} integers")
    return _with_known_labels(Batch(labels, pixels), path)


def digest_of(raw: Any, algorithm: str) -> str:
    """Hex digest of bytes or of a contiguous array."""
    return hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values; refuses every other name a pickle may ask for."""

    # Taken from an array, because the module that defines it has moved between NumPy versions.
    _RECONSTRUCT = np.empty(0).__reduce__()[0]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return self._RECONSTRUCT
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")


def _with_known_labels(batch: Batch, path: Path) -> Batch:
    low, high = int(batch.labels.min()), int(batch.labels.max())
    if low < 0 or high >= len(CLASS_NAMES):
        raise InputError(f"{path}: labels are {low} .. {high}, expected 0 .. {len(CLASS_NAMES) - 1}")
    return Batch(batch.labels.astype(np.uint8), batch.pixels)


def _read_checked(path: Path, form: Form) -> bytes:
    """The bytes of one official file, which have the published digest."""
    advice = f"remove {path.parent} and run `cifar10-accel data fetch`"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); if it is missing, {advice}") from None
    actual, expected = digest_of(raw, form.algorithm), form.digests[path.name]
    if actual != expected:
        raise InputError(
            f"{path}: damaged, {form.algorithm.upper()} is {actual}, expected {expected} ({len(raw)} bytes); {advice}"
        )
    return raw
