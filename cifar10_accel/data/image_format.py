"""Shape and normalisation of a data set's images: what a model is built for and what an export must know."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SMALLEST, LARGEST = 8, 256  # allowed side of an image, in pixels


@dataclass(frozen=True)
class ImageFormat:
    """Images (H, W, C) uint8 with H = W = `size` and C = `channels`, normalised as (value / 255 - mean) / std."""

    size: int
    channels: int
    mean: tuple[float, ...]  # per channel, of values scaled to 0..1
    std: tuple[float, ...]

    @classmethod
    def measure(cls, images: npt.NDArray[np.uint8]) -> "ImageFormat":
        """Return the format of images (N, H, W, C), with mean and standard deviation over all their pixels."""
        # By histograms of parts: exact, and no copy of all images, of which `bincount` would make one of 64 bits.
        values = np.arange(256) / 255
        counts = np.zeros((images.shape[-1], 256), np.int64)
        for part in np.array_split(images, math.ceil(len(images) / 1000)):
            for channel, count in enumerate(counts):
                count += np.bincount(part[..., channel].ravel(), minlength=256)
        means = [float(np.average(values, weights=count)) for count in counts]
        stds = [
            float(np.sqrt(np.average((values - mean) ** 2, weights=count)))
            for mean, count in zip(means, counts, strict=True)
        ]
        # A channel without any variation (a blank one) is left at its scale.
        return cls(
            images.shape[1],
            images.shape[-1],
            tuple(round(mean, 4) for mean in means),
            tuple(round(std, 4) or 1.0 for std in stds),
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageFormat":
        """Return the format that `to_json` described; that of CIFAR-10 if there are no values (early versions)."""
        if not values:
            return CIFAR10_IMAGES
        return cls(values["size"], values["channels"], tuple(values["mean"]), tuple(values["std"]))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def num_in_equal_memory(self, num_images: int) -> int:
        """Return the number of images that have as many pixels as this number of 32 pixels a side; at least one.

        For smaller images it is the same number.
        """
        return max(1, num_images * CIFAR10_IMAGES.size**2 // max(CIFAR10_IMAGES.size, self.size) ** 2)

    @property
    def fill(self) -> tuple[int, ...] | int:
        """The mean colour in 0..255, as Albumentations takes it: a number for images of one channel."""
        colour = tuple(round(255 * channel) for channel in self.mean)
        return colour if len(colour) > 1 else colour[0]


# Of the 50,000 training images; the values that are usual in the literature.
CIFAR10_IMAGES = ImageFormat(32, 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_IMAGES = ImageFormat(32, 3, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
