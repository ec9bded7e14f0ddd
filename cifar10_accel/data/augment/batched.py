"""Execution of an Albumentations pipeline on whole batches of tensors, on any device, with the same pixels.

`lower` converts a pipeline to a callable that makes the same counter-based draws as `pipeline.apply` for all images at
once, and applies them on a `Canvas`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar10_accel.data.augment.canvas import Canvas
from cifar10_accel.data.augment.lowering import DrawTable, ImageSpec, Lowering, NotLowerable, Step
from cifar10_accel.data.augment.lowering_geometry import GEOMETRY
from cifar10_accel.data.augment.lowering_pixels import PIXELS, normalized
from cifar10_accel.data.augment.pipeline import Pipeline
from cifar10_accel.data.image_format import CIFAR10_IMAGES, ImageFormat

__all__ = ["BatchedPipeline", "NotLowerable", "lower", "normalize"]

LOWERINGS = GEOMETRY | PIXELS


def lower(pipeline: Pipeline, image_format: ImageFormat = CIFAR10_IMAGES) -> "BatchedPipeline":
    """Convert a pipeline to one for whole batches of images of one format.

    Raises:
        NotLowerable: A transform, or an option of it, has no batched form.
    """
    if type(pipeline).__name__ != "Compose" or pipeline.p < 1:
        raise NotLowerable(f"{type(pipeline).__name__} with p={pipeline.p:g}")
    spec = ImageSpec(image_format.size, image_format.size, image_format.channels, np.dtype(np.uint8))
    table = DrawTable()
    steps = []
    for node, transform in enumerate(pipeline.transforms, start=1):
        lowering = _lowering_of(transform)
        if any(transform is earlier for earlier in pipeline.transforms[: node - 1]):
            raise NotLowerable(f"{type(transform).__name__} (one object twice, so its draws continue)")
        if type(transform).__name__ == "ToTensorV2" and node < len(pipeline.transforms):
            raise NotLowerable("ToTensorV2 (before the end)")
        if transform.p > 0:
            table.start(node)
            step, spec = lowering(transform, spec, table)
            steps.append(step)
    return BatchedPipeline(steps, table)


@dataclass(frozen=True)
class BatchedPipeline:
    """A lowered pipeline; the pixels do not depend on how the images are divided into batches."""

    steps: list[Step]
    table: DrawTable

    def __call__(self, images: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """Augment a batch.

        Args:
            images: (N, C, H, W) uint8; copied first unless they are in channels_last memory format.
            keys: (N,) int64 from `pipeline.image_keys`, on the same device.
            dtype: Data type of the result.

        Returns:
            (N, C, H', W'), channels_last.
        """
        canvas = Canvas(images.permute(0, 2, 3, 1).contiguous())
        draws = self.table.draw_all(keys)
        for step in self.steps:
            step(canvas, draws)
        return canvas.flush().permute(0, 3, 1, 2).to(dtype)


def normalize(images: Tensor, dtype: torch.dtype, image_format: ImageFormat = CIFAR10_IMAGES) -> Tensor:
    """Normalise images as in training, without augmentation: (N, C, H, W) uint8 to `dtype`, channels_last."""
    mean = np.array(image_format.mean, np.float32) * np.float32(255)
    scale = np.reciprocal(np.array(image_format.std, np.float32) * np.float32(255))
    pixels = images.permute(0, 2, 3, 1).contiguous()
    return normalized(pixels, mean=mean, scale=scale).permute(0, 3, 1, 2).to(dtype)


def _lowering_of(transform: Any) -> Lowering:
    """Return the lowering of a transform; subclasses of known transforms are rejected, as they may do anything."""
    name = type(transform).__name__
    package = type(transform).__module__.partition(".")[0]
    if name not in LOWERINGS or package not in ("albumentations", __name__.partition(".")[0]):
        raise NotLowerable(name)
    return LOWERINGS[name]
