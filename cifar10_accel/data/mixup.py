"""MixUp and CutMix: each image of a batch is mixed with its neighbour in the batch, and so is its label.

The order of an epoch is random, so the neighbour is a random partner. All other random choices (MixUp or CutMix, the
weight, the box) are functions of (seed, step) and equal on all ranks. The neighbour is one of the rank's own images:
unlike everything else in a run, it depends on how many processes and accumulation steps share a batch.
"""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from cifar10_accel.randomness import seed_for


class Mixed(NamedTuple):
    """Mixed images; the loss is weight * loss(labels) + (1 - weight) * loss(partner_labels)."""

    images: Tensor  # (N, 3, H, W), same dtype and memory format as the input
    labels: Tensor  # (N,)
    partner_labels: Tensor  # (N,)
    weight: float  # weight of the images' own labels, 0..1


def mix(
    images: Tensor, labels: Tensor, *, mixup_alpha: float | None, cutmix_alpha: float | None, seed: int, step: int
) -> Mixed:
    """Apply MixUp or CutMix to a batch.

    The random numbers are drawn on the host, so no step waits for the device.

    Args:
        images: (N, 3, H, W) floats, not modified.
        labels: (N,).
        mixup_alpha: Parameter of MixUp's Beta distribution; None: no MixUp.
        cutmix_alpha: Parameter of CutMix's Beta distribution; None: no CutMix. If both have a value, each step uses
            one of the two with probability 0.5.
        seed: Seed of the run.
        step: Number of the step.
    """
    if mixup_alpha is None and cutmix_alpha is None:
        return Mixed(images, labels, labels, 1.0)
    random = np.random.Generator(np.random.Philox(key=seed_for(seed, "mix", step)))
    prefers_mixup = random.random() < 0.5
    if mixup_alpha is not None and (cutmix_alpha is None or prefers_mixup):
        return mixup(images, labels, alpha=mixup_alpha, random=random)
    assert cutmix_alpha is not None
    return cutmix(images, labels, alpha=cutmix_alpha, random=random)


def mixup(images: Tensor, labels: Tensor, *, alpha: float, random: np.random.Generator) -> Mixed:
    """Return weight * image + (1 - weight) * neighbour, with the weight drawn from Beta(alpha, alpha).

    Source: Zhang, Cisse, Dauphin, Lopez-Paz 2017, https://arxiv.org/abs/1710.09412
    """
    weight = random.beta(alpha, alpha)
    return Mixed(images.roll(1, 0).lerp_(images, weight), labels, labels.roll(1), weight)


def cutmix(images: Tensor, labels: Tensor, *, alpha: float, random: np.random.Generator) -> Mixed:
    """Replace one box of each image by the same box of its neighbour.

    The relative area of the box is drawn from Beta(alpha, alpha), before the box is clipped at the edges of the image.
    Source: Yun, Han, Oh, Chun, Choe, Yoo 2019, https://arxiv.org/abs/1905.04899
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - random.beta(alpha, alpha))  # relative to the side of the image
    top, bottom = _clipped_span(int(random.integers(height + 1)), side * height, height)
    left, right = _clipped_span(int(random.integers(width + 1)), side * width, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixed(mixed, labels, labels.roll(1), weight)


def _clipped_span(centre: int, side: float, length: int) -> tuple[int, int]:
    """Return the start and the exclusive end of a box along an axis, clipped to 0 .. length."""
    half = int(side) // 2
    return max(0, centre - half), min(length, centre + half)
