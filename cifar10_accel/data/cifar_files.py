"""Official files of CIFAR-10 and CIFAR-100: names, digests and verified reading.

CIFAR-10 is read in both of its published formats: `cifar-10-batches-py` contains seven Python pickles,
`cifar-10-batches-bin` six files of records (one label byte, then 3072 pixel bytes, channels first). Images, labels and
their order are the same in both. CIFAR-100 is read as pickles, with its fine labels. The digest of every file is
checked before the file is parsed.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cifar10_accel.errors import InputError

PIXELS_PER_IMAGE = 3 * 32 * 32


class NoDataError(InputError):
    """There are no official files, and downloading them failed if it was tried."""


class FileFormat(NamedTuple):
    """A published format of a data set: its folder and the digest of every file in it."""

    folder: str
    suffix: str
    algorithm: str
    digests: dict[str, str]


class Batch(NamedTuple):
    """The images and labels of one file, as stored."""

    labels: npt.NDArray[np.uint8]  # (N,) uint8, 0 .. K - 1
    pixels: npt.NDArray[np.uint8]  # (N, 3072) uint8, channels first

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """The pixels as (N, 32, 32, 3) uint8."""
        return self.pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class Content(NamedTuple):
    """All images of a data set, in the official order."""

    train: Batch
    test: Batch
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class CifarFiles:
    """The official files of one data set.

    Args:
        dataset: The value of the setting `dataset`.
        title: Name of the data set in messages.
        num_classes: Number K of the classes.
        num_images: Number of images of every file that has images, by name without suffix: the training files in the
            official order, then the test file.
        labels_key: Key of the labels in a pickle.
        formats: The published formats that are read.
        class_names: Names of the classes; empty: they are in the file `meta`.
        has_telling_names: One of the files is enough to recognize an incomplete folder that has another name.
    """

    dataset: str
    title: str
    num_classes: int
    num_images: dict[str, int]
    labels_key: bytes
    formats: tuple[FileFormat, ...]
    class_names: tuple[str, ...] = ()
    has_telling_names: bool = True

    @property
    def fetch_command(self) -> str:
        """The command that downloads the files."""
        flag = "" if self.dataset == "cifar10" else f" --dataset {self.dataset}"
        return f"cifar10-accel data fetch{flag}"

    def locate(self, data_dir: Path) -> tuple[Path, FileFormat] | None:
        """Find the folder with the official files: `data_dir` itself or the folder of the published name in it.

        Returns:
            The folder and its format; None if there is no official file at all. An incomplete folder is returned too:
            `verify` and `read` report the missing files.
        """
        for file_format in self.formats:
            for folder in (data_dir / file_format.folder, data_dir):
                is_there = [(folder / name).is_file() for name in file_format.digests]
                is_meant = self.has_telling_names or folder.name == file_format.folder
                if all(is_there) or (is_meant and any(is_there)):
                    return folder, file_format
        return None

    def verify(self, data_dir: Path) -> list[tuple[Path, str]]:
        """Check that all official files are present and undamaged.

        Returns:
            The path and a description of the state of every file.

        Raises:
            NoDataError: There is no official file at all.
            InputError: A file is missing or damaged; the message has its path and the expected and the actual digest.
        """
        found = self.locate(data_dir)
        if found is None:
            raise NoDataError(f"{data_dir}: no {self.title} files; run `{self.fetch_command} --data-dir {data_dir}`")
        return self.verify_folder(*found)

    def verify_folder(self, folder: Path, file_format: FileFormat) -> list[tuple[Path, str]]:
        """Check one folder of a known format, see `verify`."""
        for name in file_format.digests:
            self._read_verified(folder / name, file_format)
        return [(folder / name, f"{file_format.algorithm.upper()} as published") for name in file_format.digests]

    def read(self, folder: Path, file_format: FileFormat) -> Content:
        """Read the 50,000 training and the 10,000 test images of a folder, in the official order.

        Raises:
            InputError: A file is missing or damaged.
        """
        parse = self.parse_records if file_format.suffix == ".bin" else self.parse_pickle
        *train, test = (
            parse(self._read_verified(path, file_format), path)
            for path in (folder / (name + file_format.suffix) for name in self.num_images)
        )
        labels, pixels = zip(*train, strict=True)
        class_names = self.class_names
        if not class_names:
            class_names = self.parse_class_names(self._read_verified(folder / "meta", file_format), folder / "meta")
        return Content(Batch(np.concatenate(labels), np.concatenate(pixels)), test, class_names)

    def parse_records(self, raw: bytes, path: Path) -> Batch:
        """Parse the bytes of a `.bin` file.

        Raises:
            InputError: The file has another size, or a label is too large.
        """
        num_images = self.num_images[path.stem]
        num_bytes = num_images * (1 + PIXELS_PER_IMAGE)
        records = np.frombuffer(raw, np.uint8)
        if records.size != num_bytes:
            raise InputError(f"{path}: has {records.size} bytes, expected {num_bytes}")
        records = records.reshape(num_images, 1 + PIXELS_PER_IMAGE)
        return self._with_checked_labels(Batch(records[:, 0], records[:, 1:]), path)

    def parse_pickle(self, raw: bytes, path: Path) -> Batch:
        """Parse the bytes of a pickle of images without executing code from it.

        Raises:
            InputError: The pickle refers to anything but NumPy arrays, or is not a batch of images.
        """
        try:
            content = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
            labels, pixels = np.asarray(content[self.labels_key]), np.asarray(content[b"data"])
        except Exception as error:  # a damaged pickle can raise any type of error
            raise InputError(f"{path}: is not a {self.title} batch ({type(error).__name__}: {error})") from None
        shape = (self.num_images[path.name], PIXELS_PER_IMAGE)
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise InputError(f"{path}: data is {pixels.dtype} of shape {pixels.shape}, expected uint8 of shape {shape}")
        if labels.shape != shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected {shape[0]} integers")
        return self._with_checked_labels(Batch(labels, pixels), path)

    def parse_class_names(self, raw: bytes, path: Path) -> tuple[str, ...]:
        """Parse the bytes of the file `meta` without executing code from it.

        Raises:
            InputError: It does not have one name for each class.
        """
        try:
            content = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
            names = tuple(name.decode() for name in content[b"fine_label_names"])
        except Exception as error:  # a damaged pickle can raise any type of error
            raise InputError(f"{path}: has no class names ({type(error).__name__}: {error})") from None
        if not self.num_classes == len(names) == len(set(names)):
            different = f"{len(set(names))} of them different"
            raise InputError(f"{path}: has {len(names)} class names, {different}, expected {self.num_classes}")
        return names

    def _with_checked_labels(self, batch: Batch, path: Path) -> Batch:
        low, high = int(batch.labels.min()), int(batch.labels.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(f"{path}: labels are {low} .. {high}, expected 0 .. {self.num_classes - 1}")
        return Batch(batch.labels.astype(np.uint8), batch.pixels)

    def _read_verified(self, path: Path, file_format: FileFormat) -> bytes:
        """Return the bytes of an official file after checking its digest."""
        advice = f"remove {path.parent} and run `{self.fetch_command}`"
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


CIFAR10_PICKLED = FileFormat(
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
CIFAR10_BINARY = FileFormat(
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
CIFAR100_PICKLED = FileFormat(
    "cifar-100-python",
    "",
    "md5",
    {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)
CIFAR10 = CifarFiles(
    dataset="cifar10",
    title="CIFAR-10",
    num_classes=10,
    num_images={f"data_batch_{number}": 10_000 for number in range(1, 6)} | {"test_batch": 10_000},
    labels_key=b"labels",
    formats=(CIFAR10_PICKLED, CIFAR10_BINARY),
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
CIFAR100 = CifarFiles(
    dataset="cifar100",
    title="CIFAR-100",
    num_classes=100,
    num_images={"train": 50_000, "test": 10_000},
    labels_key=b"fine_labels",
    formats=(CIFAR100_PICKLED,),
    has_telling_names=False,
)
CIFAR_FILES = {"cifar10": CIFAR10, "cifar100": CIFAR100}  # by the value of the setting `dataset`


def official_files(dataset: str) -> CifarFiles | None:
    """Return the official files of a value of the setting `dataset` (`auto`: CIFAR-10); None if it has none."""
    return CIFAR_FILES.get("cifar10" if dataset == "auto" else dataset)
