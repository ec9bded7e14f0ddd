"""Augmentation of training images as an Albumentations pipeline: the specification for `batched`.

`training_pipeline` builds the pipeline of the settings, `apply` runs it on one image. Every random choice is a
counter-based draw from the image's key (counted_random.py), so it depends on (seed, epoch, sample index) only and the
pixels are the same for any number of workers and processes.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import albumentations as A
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar10_accel.components import call_component, is_import_path, load_component
from cifar10_accel.data.augment import crop, cutout, flip
from cifar10_accel.data.augment.counted_random import CountedGenerator, CountedRandom, Stream
from cifar10_accel.data.image_format import CIFAR10_IMAGES, ImageFormat
from cifar10_accel.errors import InputError
from cifar10_accel.randomness import keys_for, seed_for
from cifar10_accel.settings import DataSettings

Pipeline = A.Compose  # for annotations in modules that do not import Albumentations

# The built-in names of `settings.augment`.
AUGMENTATIONS: dict[str, Callable[[DataSettings, ImageFormat], list[A.BasicTransform]]] = {
    "crop": crop.transforms,
    "flip": flip.transforms,
    "cutout": cutout.transforms,
}


def training_pipeline(
    settings: DataSettings, image_format: ImageFormat = CIFAR10_IMAGES, *, num_classes: int = 10
) -> A.Compose:
    """Return the transforms of `settings.augment` in their order, then normalisation.

    The pipeline turns (H, W, C) uint8 into (C, H, W) float32.

    Raises:
        SettingsError: There is no such augmentation, or it needs other arguments.
        InputError: An augmentation raises, or does not return Albumentations transforms.
    """
    transforms: list[A.BasicTransform] = []
    for name in settings.augment:
        if is_import_path(name):
            transforms += _imported_transforms(name, settings, image_format, num_classes=num_classes)
        else:
            transforms += AUGMENTATIONS[name](settings, image_format)
    return A.Compose([*transforms, A.Normalize(image_format.mean, image_format.std), A.ToTensorV2()])


def _imported_transforms(
    path: str, settings: DataSettings, image_format: ImageFormat, *, num_classes: int
) -> list[A.BasicTransform]:
    """Return the transforms that an import path stands for: a list of them, or a function that returns one."""
    found = load_component(path, setting="augment")
    if callable(found) and not isinstance(found, A.BasicTransform | A.BaseCompose):
        known = {
            "settings": settings,
            "seed": getattr(settings, "seed", 0),
            "num_classes": num_classes,
            "in_channels": image_format.channels,
            "image_size": image_format.size,
        }
        found = call_component(found, known, path=path, setting="augment")
    transforms = list(found) if isinstance(found, list | tuple) else [found]
    for transform in transforms:
        if not isinstance(transform, A.BasicTransform | A.BaseCompose):
            raise InputError(
                f"augment: {path} gave a {type(transform).__name__}; it must be, or return, a list of "
                "Albumentations transforms"
            )
    return transforms


def image_key(seed: int, epoch: int, index: int) -> int:
    """Return the 64-bit key of one image in one epoch; its lowest bit alternates from epoch to epoch."""
    first = seed_for(seed, "flip", index) & 1
    return seed_for(seed, "augment", epoch, index) & ~1 | (first ^ epoch & 1)


def image_keys(seed: int, epoch: int, indices: Any) -> Any:
    """Return the `image_key` of each index: (N,) int64 (NumPy or torch, any device) to (N,) int64."""
    first = keys_for(seed_for(seed, "flip"), indices) & 1
    return keys_for(seed_for(seed, "augment", epoch), indices) & ~1 | (first ^ epoch & 1)


def apply(pipeline: A.Compose, image: npt.NDArray[np.uint8], *, key: int) -> Tensor:
    """Apply the pipeline to one image; the random choices are a function of the key alone.

    Args:
        pipeline: The transforms.
        image: (H, W, C) uint8.
        key: From `image_key`.

    Returns:
        (C, H, W) float32; of the same size unless the pipeline changes it.
    """
    for number, node in enumerate(_nodes(pipeline)):
        stream = _stream_of(node, number)
        stream.key, stream.call = key, 0
    result = pipeline(image=image)["image"]
    if isinstance(result, np.ndarray):  # a pipeline that does not end in ToTensorV2
        result = torch.from_numpy(np.ascontiguousarray(result.transpose(2, 0, 1)))
    return cast(Tensor, result.float())


class AugmentedImages(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """Dataset of augmented training images for `DataLoader` workers.

    Items are indexed by (epoch, index), because workers that live for several epochs have no other way to know the
    epoch.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) integers.
        pipeline: The transforms.
        seed: Seed of the run.
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[Any], *, pipeline: A.Compose, seed: int
    ) -> None:
        self.images = images
        self.labels = labels
        self.pipeline = pipeline
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> tuple[Tensor, int, int]:
        """Return the augmented image (C, H, W) float32, its label and its index."""
        epoch, index = epoch_and_index
        image = apply(self.pipeline, self.images[index], key=image_key(self.seed, epoch, index))
        return image, int(self.labels[index]), index


def _nodes(node: Any) -> Iterator[Any]:
    """Yield the pipeline and all transforms in it, depth first."""
    yield node
    if isinstance(node, A.BaseCompose):
        for child in node.transforms:
            yield from _nodes(child)


def _stream_of(node: Any, number: int) -> Stream:
    """Return the node's stream; the first call replaces the node's random generators."""
    if not isinstance(node.py_random, CountedRandom) or node.py_random.stream.node != number:
        stream = Stream(number)
        # Not by set_random_state, which passes the generators of a Compose on to its transforms.
        node.py_random = CountedRandom(stream)
        node.random_generator = CountedGenerator(stream)
    return cast(Stream, node.py_random.stream)
