"""Augmentation `crop`: padding on all sides, then a random crop of the original size."""

import albumentations as A
import cv2

from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.settings import DataSettings


def transforms(settings: DataSettings, image_format: ImageFormat) -> list[A.BasicTransform]:
    """Return padding by `crop_padding` pixels with `pad_mode`, and the random crop."""
    border = cv2.BORDER_REFLECT_101 if settings.pad_mode == "reflect" else cv2.BORDER_CONSTANT
    return [
        A.Pad(settings.crop_padding, fill=image_format.fill, border_mode=border),
        A.RandomCrop(image_format.size, image_format.size),
    ]
