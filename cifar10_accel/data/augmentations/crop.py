"""crop: a few pixels of padding on each side, then a random window of the old size."""

import albumentations as A
import cv2

from cifar10_accel.data.augment import IMAGE_SIZE, MEAN_COLOUR
from cifar10_accel.settings import DataSettings


def transforms(settings: DataSettings) -> list[A.BasicTransform]:
    """Padding by `crop_padding` as `pad_mode` says, and a crop."""
    border = cv2.BORDER_REFLECT_101 if settings.pad_mode == "reflect" else cv2.BORDER_CONSTANT
    return [
        A.Pad(settings.crop_padding, fill=MEAN_COLOUR, border_mode=border),
        A.RandomCrop(IMAGE_SIZE, IMAGE_SIZE),
    ]
