"""Augmentation `cutout`: one square is filled with the mean colour (https://arxiv.org/abs/1708.04552)."""

import albumentations as A

from cifar10_accel.data.constants import MEAN_COLOUR
from cifar10_accel.settings import DataSettings


def transforms(settings: DataSettings) -> list[A.BasicTransform]:
    """Return cutout with one square of `cutout_size` pixels a side."""
    side = (settings.cutout_size, settings.cutout_size)
    return [A.CoarseDropout((1, 1), side, side, fill=MEAN_COLOUR, p=1)]
