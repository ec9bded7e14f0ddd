"""Draw training images exactly as the model gets them in given epochs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cifar10_accel.data.augment.batched import lower
from cifar10_accel.data.augment.pipeline import apply, image_key, image_keys, training_pipeline
from cifar10_accel.data.constants import MEAN, STD
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.data.loader import lower_if_possible, scaled_down
from cifar10_accel.errors import SettingsError
from cifar10_accel.report.figures import draw_augmented
from cifar10_accel.settings import Settings

Pixels = npt.NDArray[np.uint8]


def preview(settings: Settings, *, epochs: Sequence[int], indices: Sequence[int], compare: bool, path: Path) -> None:
    """Write a PNG with one row per training image and one column per epoch.

    Args:
        settings: The settings of the training.
        epochs: Epochs to draw, from 0.
        indices: Indices in the training set.
        compare: Draw two rows per image, one with each augmentation backend.
        path: File to write.

    Raises:
        SettingsError: An index is not in the training set, or the file cannot be written.
    """
    settings = settings.resolve_recipe(on_cpu=not torch.accelerator.is_available())
    dataset = load_dataset(settings, seed=settings.seed)
    if max(indices) >= len(dataset.train):
        raise SettingsError(f"index: {max(indices)} is not a training image; give 0 to {len(dataset.train) - 1}")
    images = dataset.train.images[list(indices)]
    backends = (
        ["batched", "albumentations"]
        if compare
        else ["albumentations" if lower_if_possible(settings) is None else "batched"]
    )
    drawn = np.stack([_augmented(images, settings, backend, epochs, indices) for backend in backends], axis=1)
    names = [dataset.class_names[dataset.train.labels[index]] for index in indices]
    rows = [
        f"{name} #{index}{f' {backend}' if compare else ''}"
        for name, index in zip(names, indices, strict=True)
        for backend in backends
    ]
    try:
        draw_augmented(
            drawn.reshape(-1, *drawn.shape[2:]),
            rows,
            [f"epoch {epoch}" for epoch in epochs],
            path,
            title=f"training images as the model gets them: {dataset.name}, seed {settings.seed}",
        )
    except OSError as error:
        raise SettingsError(f"out: {path} cannot be written ({error.strerror}); give another --out") from None


def _augmented(
    images: Pixels, settings: Settings, backend: str, epochs: Sequence[int], indices: Sequence[int]
) -> Pixels:
    """Return (images, epochs, 32, 32, 3) uint8."""
    make = _batched if backend == "batched" else _one_by_one
    made = [_with_low_res(make(images, settings, epoch, indices), settings, epoch) for epoch in epochs]
    return np.stack([_to_pixels(images_of_epoch) for images_of_epoch in made], axis=1)


def _batched(images: Pixels, settings: Settings, epoch: int, indices: Sequence[int]) -> torch.Tensor:
    keys = image_keys(settings.seed, epoch, torch.tensor(list(indices)))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return lower(training_pipeline(settings))(batch, keys, dtype=torch.float32)


def _one_by_one(images: Pixels, settings: Settings, epoch: int, indices: Sequence[int]) -> torch.Tensor:
    pipeline = training_pipeline(settings)
    pairs = zip(images, indices, strict=True)
    return torch.stack([apply(pipeline, image, key=image_key(settings.seed, epoch, index)) for image, index in pairs])


def _with_low_res(images: torch.Tensor, settings: Settings, epoch: int) -> torch.Tensor:
    """Scale down in epochs of low resolution, and back to (N, 3, 32, 32) with larger pixels."""
    if epoch >= settings.low_res_epochs:
        return images
    return F.interpolate(scaled_down(images, settings.low_res_size), size=images.shape[2:], mode="nearest")


def _to_pixels(normalised: torch.Tensor) -> Pixels:
    """Convert (N, 3, 32, 32) normalised floats back to (N, 32, 32, 3) uint8."""
    pixels = normalised.permute(0, 2, 3, 1).numpy() * np.array(STD) + np.array(MEAN)
    whole: Pixels = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    return whole
