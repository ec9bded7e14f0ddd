"""flip: left and right change places."""

import albumentations as A

from cifar10_accel.data.augment import AlternatingFlip
from cifar10_accel.settings import DataSettings


def transforms(settings: DataSettings) -> list[A.BasicTransform]:
    """A flip, at random or in every other epoch, as `flip_mode` says."""
    return [AlternatingFlip() if settings.flip_mode == "alternating" else A.HorizontalFlip(p=0.5)]
