"""The Albumentations pipeline on whole batches of tensors, on any device: same pixels, no loop over images.

`lower` reads a pipeline and gives back a callable that makes the random choices of `augment.apply`
(the same counter-based draws, see there) for all images at once, and carries them out on a `Canvas`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar10_accel.data.augment import IMAGE_SIZE, MEAN, STD, Pipeline
from cifar10_accel.data.canvas import Canvas
from cifar10_accel.data.lowering import Bookings, Form, Lowering, NotLowerable, Step
from cifar10_accel.data.lowering_geometry import GEOMETRY
from cifar10_accel.data.lowering_pixels import PIXELS, normalized

__all__ = ["BatchedPipeline", "NotLowerable", "lower", "normalize"]

LOWERINGS = GEOMETRY | PIXELS


def lower(pipeline: Pipeline) -> "BatchedPipeline":
    """The pipeline for whole batches of 32x32 images; `NotLowerable` if one of its transforms cannot be."""
    if type(pipeline).__name__ != "Compose" or pipeline.p < 1:
        raise NotLowerable(f"{type(pipeline).__name__} with p={pipeline.p:g}")
    form = Form(IMAGE_SIZE, IMAGE_SIZE, np.dtype(np.uint8))
    bookings = Bookings()
    steps = []
    for node, transform in enumerate(pipeline.transforms, start=1):
        lowering = _lowering_of(transform)
        if any(transform is earlier for earlier in pipeline.transforms[: node - 1]):
            raise NotLowerable(f"{type(transform).__name__} (one object twice, so its draws run on)")
        if type(transform).__name__ == "ToTensorV2" and node < len(pipeline.transforms):
            raise NotLowerable("ToTensorV2 (before the end)")
        if transform.p > 0:
            bookings.start(node)
            step, form = lowering(transform, form, bookings)
            steps.append(step)
    return BatchedPipeline(steps, bookings)


@dataclass(frozen=True)
class BatchedPipeline:
    """A lowered pipeline. The same pixels for any split into batches."""

    steps: list[Step]
    bookings: Bookings

    def __call__(self, images: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """Images (N, 3, 32, 32) uint8 and their keys (N,) int64 -> (N, 3, 32, 32) `dtype`, channels_last.

        Images and keys are on one device; `augment.image_keys` makes the keys. Images in channels_last
        memory format are read where they are, others are copied first.
        """
        canvas = Canvas(images.permute(0, 2, 3, 1).contiguous())
        drawn = self.bookings.draw_all(keys)
        for step in self.steps:
            step(canvas, drawn)
        return canvas.flush().permute(0, 3, 1, 2).to(dtype)


def normalize(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images (N, 3, H, W) uint8 normalised as in training, without augmentation: `dtype`, channels_last."""
    mean = np.array(MEAN, np.float32) * np.float32(255)
    scale = np.reciprocal(np.array(STD, np.float32) * np.float32(255))
    pixels = images.permute(0, 2, 3, 1).contiguous()
    return normalized(pixels, mean=mean, scale=scale).permute(0, 3, 1, 2).to(dtype)


def _lowering_of(transform: Any) -> Lowering:
    """How a transform is lowered. Known classes only, not what a user derives from them."""
    name = type(transform).__name__
    package = type(transform).__module__.partition(".")[0]
    if name not in LOWERINGS or package not in ("albumentations", __name__.partition(".")[0]):
        raise NotLowerable(name)
    return LOWERINGS[name]
