"""Data sets: functions that return a Dataset of uint8 arrays, or a pair of torchvision-style data sets."""

import numpy as np

from cifar10_accel import Dataset

CLASS_NAMES = ("horizontal", "vertical", "diagonal", "dots")


def load(seed: int) -> Dataset:
    """Return drawn patterns in colour, 16 pixels a side."""
    train, test = _draw(400, seed, channels=3), _draw(100, seed + 1, channels=3)
    return Dataset(name="patterns", train=train, test=test, class_names=CLASS_NAMES)


def load_gray(seed: int) -> Dataset:
    """Return the same patterns in grayscale."""
    train, test = _draw(400, seed, channels=1), _draw(100, seed + 1, channels=1)
    return Dataset(name="gray patterns", train=train, test=test, class_names=CLASS_NAMES)


def _draw(number: int, seed: int, *, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one of four patterns for each image, with noise: (number, 16, 16, channels) uint8, (number,) int64."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASS_NAMES), number)
    rows, columns = np.mgrid[:16, :16]
    patterns = np.stack([rows // 2 % 2, columns // 2 % 2, (rows + columns) // 2 % 2, rows % 3 * (columns % 3) // 4])
    shift = random.integers(0, 4, number)
    drawn = np.stack([np.roll(patterns[label], step, axis=(0, 1)) for label, step in zip(labels, shift, strict=True)])
    colour = random.uniform(0.3, 1, (number, 1, 1, channels))
    noise = random.normal(0, 0.5, (number, 16, 16, channels))
    return ((drawn[..., None] * colour + noise).clip(0, 1) * 255).astype(np.uint8), labels
