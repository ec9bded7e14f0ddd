"""Augmentation `cutout`: one square is filled with the mean colour (https://arxiv.org/abs/1708.04552)."""

import albumentations as A

from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.settings import DataSettings


def transforms(settings: DataSettings, image_format: ImageFormat) -> list[A.BasicTransform]:
    """Return cutout with one square of `cutout_size` pixels a side."""
    side = (settings.cutout_size, settings.cutout_size)
    return [A.CoarseDropout((1, 1), side, side, fill=image_format.fill, p=1)]
