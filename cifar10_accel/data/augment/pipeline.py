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

from cifar10_accel.data.augment import crop, cutout, flip
from cifar10_accel.data.augment.counted_random import CountedGenerator, CountedRandom, Stream
from cifar10_accel.data.constants import MEAN, STD
from cifar10_accel.randomness import keys_for, seed_for
from cifar10_accel.settings import DataSettings

Pipeline = A.Compose  # for annotations in modules that do not import Albumentations

# The names of `settings.augment`, in the order in which they are applied.
AUGMENTATIONS: dict[str, Callable[[DataSettings], list[A.BasicTransform]]] = {
    "crop": crop.transforms,
    "flip": flip.transforms,
    "cutout": cutout.transforms,
}


def training_pipeline(settings: DataSettings) -> A.Compose:
    """Return the transforms of `settings.augment`, in the order of `AUGMENTATIONS`, then normalisation.

    The pipeline turns (32, 32, 3) uint8 into (3, 32, 32) float32.
    """
    transforms: list[A.BasicTransform] = []
    for name, augmentation in AUGMENTATIONS.items():
        if name in settings.augment:
            transforms += augmentation(settings)
    return A.Compose([*transforms, A.Normalize(MEAN, STD), A.ToTensorV2()])


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
        image: (32, 32, 3) uint8.
        key: From `image_key`.

    Returns:
        (3, H, W) float32; 32x32 unless the pipeline changes the size.
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
        images: (N, 32, 32, 3) uint8.
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
        """Return the augmented image (3, 32, 32) float32, its label and its index."""
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
