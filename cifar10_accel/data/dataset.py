"""Images and labels of a data set as checked arrays."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar10_accel.data.image_format import LARGEST, SMALLEST, ImageFormat
from cifar10_accel.errors import InputError
from cifar10_accel.settings import DataSettings


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of the training, hold-out or test set. Do not modify them: copies may be cached on a device."""

    images: npt.NDArray[np.uint8]  # (N, H, W, C) uint8, contiguous, H = W, C = 1 or 3
    labels: npt.NDArray[np.int64]  # (N,) int64, 0 .. K - 1

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "Split":
        """Return the images and labels with these indices, in the order of the indices."""
        return Split(self.images[indices], self.labels[indices])


Part = Split | tuple[npt.ArrayLike, npt.ArrayLike]  # images and labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, hold-out and test set of a run.

    Args:
        name: Its name in the titles of pictures and in `preview` and `robustness`; never auto. Results and pages have
            what the setting `dataset` names.
        train: Images (N, H, W, C) uint8 with H = W in 8 .. 256 and C = 1 or 3, and labels (N,) of integers 0 .. K - 1.
        test: The same, of the same format; never used to choose anything.
        class_names: Names of the K classes; None: `class 0`, `class 1`, ...
        val: Hold-out; None: `val_size` training images are held out.
        image_format: Normalisation; None: mean and standard deviation of the training images.

    Raises:
        InputError: An array has another shape or type, or a label is out of range.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    val: Split | None
    image_format: ImageFormat

    def __init__(
        self,
        *,
        name: str,
        train: Part,
        test: Part,
        class_names: Sequence[str] | None = None,
        val: Part | None = None,
        image_format: ImageFormat | None = None,
    ) -> None:
        train_split = checked_split(train, f"{name}, train")
        if class_names is None:
            class_names = [f"class {number}" for number in range(int(train_split.labels.max()) + 1)]
        twice = next((one for one, count in Counter(map(str, class_names)).items() if count > 1), None)
        if twice is not None:
            raise InputError(f"dataset {name}: two classes have the name {twice!r}; give each a name of its own")
        splits = {
            "train": train_split,
            "test": checked_split(test, f"{name}, test"),
            "val": None if val is None else checked_split(val, f"{name}, val"),
        }
        for part, split in splits.items():
            _require_same_format(split, train_split, where=f"{name}, {part}", num_classes=len(class_names))
        values = {
            "name": name,
            "class_names": tuple(map(str, class_names)),
            "image_format": image_format or ImageFormat.measure(train_split.images),
            **splits,
        }
        for field, value in values.items():  # frozen, so not by assignment
            object.__setattr__(self, field, value)

    def facts(self, settings: DataSettings) -> dict[str, Any]:
        """Return what components that are not built in get if their signature names it."""
        return {
            "settings": settings,
            "seed": getattr(settings, "seed", 0),
            "num_classes": len(self.class_names),
            "in_channels": self.image_format.channels,
            "image_size": self.image_format.size,
        }

    def normalised_as(self, image_format: ImageFormat) -> "Dataset":
        """Return the same images with the normalisation of another run."""
        return replace(self, image_format=image_format)

    def digest_parts(self) -> Iterator[bytes]:
        """Yield what distinguishes this data set from others, as bytes."""
        yield repr((self.name, self.class_names, self.image_format)).encode()
        for split in (self.train, self.val, self.test):
            if split is not None:
                yield from (split.images.tobytes(), split.labels.tobytes())


def images_digest(split: Split) -> str:
    """Return twelve hex digits of all labels and about a thousand images, which tell other images apart."""
    sha = hashlib.sha256(split.labels.tobytes())
    sha.update(split.images[:: max(1, len(split) // 1000)].tobytes())
    return sha.hexdigest()[:12]


def checked_split(part: Part, where: str) -> Split:
    """Return images and labels as a `Split` after checking them.

    Raises:
        InputError: They are not what `Dataset` takes; `where` says which they are.
    """
    if isinstance(part, Split):
        given_images, given_labels = part.images, part.labels
    else:
        try:
            given_images, given_labels = (np.asarray(array) for array in part)
        except (TypeError, ValueError):
            raise InputError(
                f"dataset {where}: expected a pair (images, labels), found a {type(part).__name__}"
            ) from None
    if given_images.dtype != np.uint8:
        raise InputError(
            f"dataset {where}: images are {given_images.dtype}, expected uint8 in 0..255; "
            "convert them, (images * 255).round().astype(np.uint8) if they are floats in 0..1"
        )
    shape = given_images.shape
    images = given_images[..., None] if given_images.ndim == 3 else given_images  # greyscale without a channel axis
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3):
        hint = "; they are channels first: transpose(0, 2, 3, 1)" if images.ndim == 4 and shape[1] in (1, 3) else ""
        raise InputError(f"dataset {where}: images have shape {shape}, expected (N, side, side, 1 or 3){hint}")
    if not SMALLEST <= images.shape[1] <= LARGEST:
        raise InputError(
            f"dataset {where}: images are {images.shape[1]} pixels a side, expected {SMALLEST} to {LARGEST}; "
            "resize them"
        )
    labels = given_labels
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"dataset {where}: labels are {labels.dtype} of shape {labels.shape}, expected integers of shape "
            f"({len(images)},)"
        )
    if not len(images):
        raise InputError(f"dataset {where}: there are no images")
    return Split(np.ascontiguousarray(images), labels.astype(np.int64))


def _require_same_format(split: Split | None, train: Split, *, where: str, num_classes: int) -> None:
    if split is None:
        return
    if split.images.shape[1:] != train.images.shape[1:]:
        raise InputError(
            f"dataset {where}: images are {split.images.shape[1:]}, those of the training set {train.images.shape[1:]}"
        )
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(
            f"dataset {where}: labels are {low} .. {high}, expected 0 .. {num_classes - 1} for {num_classes} classes"
        )
