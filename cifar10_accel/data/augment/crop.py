"""Augmentation `crop`: padding on all sides, then a random crop of the original size."""

import albumentations as A
import cv2

from cifar10_accel.data.constants import IMAGE_SIZE, MEAN_COLOUR
from cifar10_accel.settings import DataSettings


def transforms(settings: DataSettings) -> list[A.BasicTransform]:
    """Return padding by `crop_padding` pixels with `pad_mode`, and the random crop."""
    border = cv2.BORDER_REFLECT_101 if settings.pad_mode == "reflect" else cv2.BORDER_CONSTANT
    return [
        A.Pad(settings.crop_padding, fill=MEAN_COLOUR, border_mode=border),
        A.RandomCrop(IMAGE_SIZE, IMAGE_SIZE),
    ]
