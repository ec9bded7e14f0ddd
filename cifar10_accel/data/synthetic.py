"""Synthetic data set that needs no download: ten classes of drawn shapes, 32x32 pixels.

Each image has one shape of random colour, position, size and rotation on a shaded background, with three blobs in front
and noise on all pixels. A shape is as often darker as brighter than the background, so single pixels carry little
information: a linear model stays weak, while a convolutional network learns the set well. All random numbers are
functions of (seed, train or test, index): image i is the same in a set of any size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar10_accel.randomness import DRAW_BITS, draws, keys_for, seed_for

SIDE = 32
CHUNK = 100  # images drawn at a time, few enough for the CPU cache
NUM_BLOBS = 3

# Counters of the draws from an image's key.
BACKGROUND, CONTRAST = 0, 3  # one for each of three channels
RADIUS, SHAPE_X, SHAPE_Y, ANGLE = 6, 7, 8, 9
SHADE_X, SHADE_Y, NOISE_STRENGTH = 10, 11, 12
BLOB_X, BLOB_Y, BLOB_RADIUS, BLOB_COLOUR, DRAWS_PER_BLOB = 13, 14, 15, 16, 6
NOISE = 1024  # one for each pixel

Floats = npt.NDArray[np.floating[Any]]  # float32, (N, 32, 32) or (N, 1, 1) for one number per image
Keys = npt.NDArray[np.int64]


def draw_images(num_images: int, *, seed: int, purpose: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw the first images of a sequence; the ten classes take turns.

    Args:
        num_images: Number of images N.
        seed: Seed of the sequence.
        purpose: "train" or "test"; the two sequences have no image in common.

    Returns:
        Images (N, 32, 32, 3) uint8 and labels (N,) int64.
    """
    keys = keys_for(seed_for(seed, f"synthetic {purpose}"), np.arange(num_images))
    labels = np.arange(num_images) % len(CLASS_NAMES)
    images = np.empty((num_images, SIDE, SIDE, 3), dtype=np.uint8)
    for label in range(len(CLASS_NAMES)):
        of_class = np.flatnonzero(labels == label)
        for start in range(0, len(of_class), CHUNK):
            chunk = of_class[start : start + CHUNK]
            images[chunk] = _draw_class(keys[chunk], label)
    return images, labels


def _draw_class(keys: Keys, label: int) -> npt.NDArray[np.uint8]:
    """Draw one image of the class for each key: (N, 32, 32, 3) uint8."""
    shape, shading = _shape(keys, label), _shading(keys)
    channels = []  # of (N, 32, 32)
    for channel in range(3):
        background = _uniform(keys, BACKGROUND + channel, 0.0, 1.0)
        # Modulo 1: every channel differs strongly from the background, but may be brighter or darker.
        shape_colour = (background + _uniform(keys, CONTRAST + channel, 0.35, 0.65)) % 1.0
        channels.append(_blend(background + shading, shape_colour + shading / 2, shape))
    for blob in range(0, NUM_BLOBS * DRAWS_PER_BLOB, DRAWS_PER_BLOB):
        covered = _blob(keys, blob)
        for channel in range(3):
            blob_colour = _uniform(keys, BLOB_COLOUR + blob + channel, 0.0, 1.0)
            channels[channel] = _blend(channels[channel], blob_colour, covered)
    brightness = np.stack(channels, axis=-1) + _noise(keys)
    images: npt.NDArray[np.uint8] = np.clip(brightness * 255 + 0.5, 0, 255).astype(np.uint8)
    return images


def _shape(keys: Keys, label: int) -> Floats:
    """Return the coverage of each pixel by the shape, 0 .. 1: (N, 32, 32)."""
    radius = _uniform(keys, RADIUS, 8.0, 13.0)  # pixels
    x, y = _from_center(_uniform(keys, SHAPE_X, -4.0, 4.0), _uniform(keys, SHAPE_Y, -4.0, 4.0))
    angle = _uniform(keys, ANGLE, 0.0, 2 * np.pi)
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    return _coverage(_INSIDE[CLASS_NAMES[label]](x * cos + y * sin, y * cos - x * sin) * radius)


def _blob(keys: Keys, blob: int) -> Floats:
    """Return the coverage of each pixel by a small disk: (N, 32, 32); `blob` is the first of its counters."""
    x, y = _from_center(_uniform(keys, BLOB_X + blob, -16.0, 16.0), _uniform(keys, BLOB_Y + blob, -16.0, 16.0))
    return _coverage(_uniform(keys, BLOB_RADIUS + blob, 1.0, 3.0) - np.hypot(x, y))


def _shading(keys: Keys) -> Floats:
    """Return a linear brightness gradient in a random direction: (N, 32, 32)."""
    x, y = _from_center(0.0, 0.0)
    return x * _uniform(keys, SHADE_X, -0.012, 0.012) + y * _uniform(keys, SHADE_Y, -0.012, 0.012)


def _noise(keys: Keys) -> Floats:
    """Return uniform noise around zero of random strength: (N, 32, 32, 3); one draw per pixel, 10 bits per channel."""
    drawn = draws(keys[:, None] ^ (NOISE + np.arange(SIDE * SIDE)), 0).astype(np.int32)
    fields = (drawn.reshape(-1, SIDE, SIDE, 1) >> np.array([0, 10, 20], dtype=np.int32)) & 1023
    strength = _uniform(keys, NOISE_STRENGTH, 0.1, 0.5)[..., None]
    noise: Floats = (fields.astype(np.float32) / 1023 - 0.5) * strength
    return noise


def _coverage(pixels_inside: Floats) -> Floats:
    """Return 0 outside, 1 inside and a linear ramp one pixel wide between them (anti-aliasing)."""
    covered: Floats = np.clip(pixels_inside + 0.5, 0, 1)
    return covered


def _blend(below: Floats, above: Floats, covered: Floats) -> Floats:
    return below + (above - below) * covered


def _from_center(x: Floats | float, y: Floats | float) -> tuple[Floats, Floats]:
    """Return x and y of each pixel relative to the point (x, y), which is given relative to the image's centre."""
    line = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    return line[None, None, :] - x, line[None, :, None] - y


def _uniform(keys: Keys, counter: int, low: float, high: float) -> Floats:
    """Return one uniform number in low .. high for each key: (N, 1, 1)."""
    fraction = draws(keys, counter) / (1 << DRAW_BITS)
    numbers: Floats = (low + (high - low) * fraction).astype(np.float32)[:, None, None]
    return numbers


# Signed distance, about, of a point (u, v) from the edge of a shape, in radii; positive inside.
_INSIDE: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disk": lambda u, v: 0.8 - np.hypot(u, v),
    "ring": lambda u, v: 0.2 - np.abs(np.hypot(u, v) - 0.7),
    "square": lambda u, v: 0.72 - np.maximum(np.abs(u), np.abs(v)),
    "triangle": lambda u, v: 0.5 - np.maximum(v, 0.866 * np.abs(u) - 0.5 * v),
    "cross": lambda u, v: np.minimum(0.95 - np.maximum(np.abs(u), np.abs(v)), 0.27 - np.minimum(np.abs(u), np.abs(v))),
    "flower": lambda u, v: 0.6 + 0.32 * np.cos(5 * np.arctan2(v, u)) - np.hypot(u, v),
    "crescent": lambda u, v: np.minimum(0.9 - np.hypot(u, v), np.hypot(u - 0.45, v) - 0.65),
    "stripes": lambda u, v: np.minimum(0.9 - np.hypot(u, v), np.sin(8 * u) / 8),
    "checkerboard": lambda u, v: np.minimum(
        0.8 - np.maximum(np.abs(u), np.abs(v)), np.sin(7.85 * u) * np.sin(7.85 * v) / 7.85
    ),
    "dots": lambda u, v: np.minimum(
        0.95 - np.maximum(np.abs(u), np.abs(v)),
        0.2 - np.hypot(u - 0.6 * np.rint(u / 0.6), v - 0.6 * np.rint(v / 0.6)),
    ),
}
CLASS_NAMES = tuple(_INSIDE)
