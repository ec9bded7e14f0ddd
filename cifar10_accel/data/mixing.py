"""MixUp and CutMix: whole batches in which each image is mixed with its neighbour, and so is its label.

The order of an epoch is random, so the neighbour in the batch is a random partner. What is random
besides (which of the two, the weight, the box) is a function of (seed, step) and the same on all
ranks. The neighbour is one of the rank's own images: other than everything else in a run, it depends on
how many processes and accumulation steps share a batch.
"""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from cifar10_accel.randomness import seed_for


class Mixed(NamedTuple):
    """Mixed images; the loss is weight * loss(labels) + (1 - weight) * loss(partner_labels)."""

    images: Tensor  # (N, 3, H, W), dtype and memory format as given
    labels: Tensor  # (N,)
    partner_labels: Tensor  # (N,)
    weight: float  # the images' own share, 0..1


def mix(
    images: Tensor, labels: Tensor, *, mixup_alpha: float | None, cutmix_alpha: float | None, seed: int, step: int
) -> Mixed:
    """MixUp or CutMix of a batch; by a coin for each step if both have an alpha, unchanged if none has.

    images: (N, 3, H, W) floats, not written to; labels: (N,). The draws are made on the host, so no step
    waits for the device.
    """
    random = np.random.Generator(np.random.Philox(key=seed_for(seed, "mix", step)))
    heads = random.random() < 0.5
    if mixup_alpha is not None and (cutmix_alpha is None or heads):
        return mixup(images, labels, alpha=mixup_alpha, random=random)
    if cutmix_alpha is not None:
        return cutmix(images, labels, alpha=cutmix_alpha, random=random)
    return Mixed(images, labels, labels, 1.0)


def mixup(images: Tensor, labels: Tensor, *, alpha: float, random: np.random.Generator) -> Mixed:
    """weight * image + (1 - weight) * neighbour, weight from Beta(alpha, alpha).

    (Zhang, Cisse, Dauphin, Lopez-Paz 2017, https://arxiv.org/abs/1710.09412)
    """
    weight = random.beta(alpha, alpha)
    return Mixed(images.roll(1, 0).lerp_(images, weight), labels, labels.roll(1), weight)


def cutmix(images: Tensor, labels: Tensor, *, alpha: float, random: np.random.Generator) -> Mixed:
    """A box of the neighbour in each image, its area from Beta(alpha, alpha) before it is cut off at the edges.

    (Yun, Han, Oh, Chun, Choe, Yoo 2019, https://arxiv.org/abs/1905.04899)
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - random.beta(alpha, alpha))  # as a fraction of the image's
    top, bottom = _span(int(random.integers(height + 1)), side * height, height)
    left, right = _span(int(random.integers(width + 1)), side * width, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixed(mixed, labels, labels.roll(1), weight)


def _span(centre: int, side: float, length: int) -> tuple[int, int]:
    """First line and line after the last of a box around the upper edge of line `centre`, cut to 0 .. length."""
    half = int(side) // 2
    return max(0, centre - half), min(length, centre + half)
