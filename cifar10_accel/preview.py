"""Draws training images exactly as the net sees them in given epochs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cifar10_accel.data.augment import MEAN, STD, apply, image_key, image_keys, training_pipeline
from cifar10_accel.data.batched import lower
from cifar10_accel.data.batches import choose_backend, scaled_down
from cifar10_accel.data.cifar10 import load
from cifar10_accel.errors import SettingsError
from cifar10_accel.launch import without_auto
from cifar10_accel.pictures import draw_augmented
from cifar10_accel.settings import Settings

Pixels = npt.NDArray[np.uint8]


def preview(settings: Settings, *, epochs: Sequence[int], indices: Sequence[int], compare: bool, path: Path) -> None:
    """Writes a PNG: one row per training image, one column per epoch; `compare` draws each backend's rows.

    Raises `SettingsError` for an index that is not in the training set or a file that cannot be written.
    """
    settings = without_auto(settings, on_cpu=not torch.accelerator.is_available())
    dataset = load(settings, seed=settings.seed)
    if max(indices) >= len(dataset.train):
        raise SettingsError(f"index: {max(indices)} is not a training image; give 0 to {len(dataset.train) - 1}")
    images = dataset.train.images[list(indices)]
    backends = ["batched", "albumentations"] if compare else [choose_backend(settings)]
    drawn = np.stack([_augmented(images, settings, backend, epochs, indices) for backend in backends], axis=1)
    names = [dataset.class_names[dataset.train.labels[index]] for index in indices]
    rows = [f"{name} #{index}{f' {backend}' if compare else ''}"
            for name, index in zip(names, indices, strict=True) for backend in backends]  # fmt: skip
    try:
        draw_augmented(drawn.reshape(-1, *drawn.shape[2:]), rows, [f"epoch {epoch}" for epoch in epochs], path,
                       title=f"training images as the net sees them: {dataset.name}, seed {settings.seed}")  # fmt: skip
    except OSError as error:
        raise SettingsError(f"out: {path} cannot be written ({error.strerror}); give another --out") from None


def _augmented(
    images: Pixels, settings: Settings, backend: str, epochs: Sequence[int], indices: Sequence[int]
) -> Pixels:
    """(images, epochs, 32, 32, 3) uint8."""
    make = _batched if backend == "batched" else _one_by_one
    made = [_sized(make(images, settings, epoch, indices), settings, epoch) for epoch in epochs]
    return np.stack([_to_pixels(images_of_epoch) for images_of_epoch in made], axis=1)


def _batched(images: Pixels, settings: Settings, epoch: int, indices: Sequence[int]) -> torch.Tensor:
    keys = image_keys(settings.seed, epoch, torch.tensor(list(indices)))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return lower(training_pipeline(settings))(batch, keys, dtype=torch.float32)


def _one_by_one(images: Pixels, settings: Settings, epoch: int, indices: Sequence[int]) -> torch.Tensor:
    pipeline = training_pipeline(settings)
    pairs = zip(images, indices, strict=True)
    return torch.stack([apply(pipeline, image, key=image_key(settings.seed, epoch, index)) for image, index in pairs])


def _sized(images: torch.Tensor, settings: Settings, epoch: int) -> torch.Tensor:
    """Scaled down in epochs of small images, whose pixels are then drawn larger: (N, 3, 32, 32) as ever."""
    if epoch >= settings.low_res_epochs:
        return images
    return F.interpolate(scaled_down(images, settings.low_res_size), size=images.shape[2:], mode="nearest")


def _to_pixels(normalised: torch.Tensor) -> Pixels:
    """(N, 3, 32, 32) normalised floats back to (N, 32, 32, 3) uint8."""
    pixels = normalised.permute(0, 2, 3, 1).numpy() * np.array(STD) + np.array(MEAN)
    whole: Pixels = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    return whole
