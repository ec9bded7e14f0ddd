"""Draw training images exactly as the model gets them in given epochs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cifar10_accel.data.augment.batched import lower
from cifar10_accel.data.augment.pipeline import apply, image_key, image_keys, training_pipeline
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.data.loader import lower_if_possible, scaled_down
from cifar10_accel.errors import SettingsError
from cifar10_accel.files import output_of
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
    augmenter = _Augmenter(settings, dataset, indices)
    backends = ["batched", "albumentations"] if compare else [augmenter.backend()]
    drawn = np.stack([augmenter.draw(backend, epochs) for backend in backends], axis=1)
    names = [dataset.class_names[dataset.train.labels[index]] for index in indices]
    rows = [
        f"{name} #{index}{f' {backend}' if compare else ''}"
        for name, index in zip(names, indices, strict=True)
        for backend in backends
    ]
    with output_of("out", path):
        draw_augmented(
            drawn.reshape(-1, *drawn.shape[2:]),
            rows,
            [f"epoch {epoch}" for epoch in epochs],
            path,
            title=f"training images as the model gets them: {dataset.name}, seed {settings.seed}",
        )


class _Augmenter:
    """Augmentation of some training images as in a training, back to pixels."""

    def __init__(self, settings: Settings, dataset: Dataset, indices: Sequence[int]) -> None:
        self._settings, self._format, self._indices = settings, dataset.image_format, list(indices)
        self._images = dataset.train.images[self._indices]
        self._pipeline = training_pipeline(settings, self._format, num_classes=len(dataset.class_names))

    def backend(self) -> str:
        """Return the backend that the training uses."""
        lowered = lower_if_possible(self._pipeline, self._settings, self._format)
        return "albumentations" if lowered is None else "batched"

    def draw(self, backend: str, epochs: Sequence[int]) -> Pixels:
        """Return (images, epochs, H, W, 3) uint8."""
        make = self._batched if backend == "batched" else self._one_by_one
        return np.stack([self._to_pixels(self._with_low_res(make(epoch), epoch)) for epoch in epochs], axis=1)

    def _batched(self, epoch: int) -> torch.Tensor:
        keys = image_keys(self._settings.seed, epoch, torch.tensor(self._indices))
        batch = torch.from_numpy(self._images).permute(0, 3, 1, 2)
        return lower(self._pipeline, self._format)(batch, keys, dtype=torch.float32)

    def _one_by_one(self, epoch: int) -> torch.Tensor:
        keys = [image_key(self._settings.seed, epoch, index) for index in self._indices]
        pairs = zip(self._images, keys, strict=True)
        return torch.stack([apply(self._pipeline, image, key=key) for image, key in pairs])

    def _with_low_res(self, images: torch.Tensor, epoch: int) -> torch.Tensor:
        """Scale down in epochs of low resolution, and back to the size with larger pixels."""
        if epoch >= self._settings.low_res_epochs:
            return images
        small = scaled_down(images, self._settings.low_res_size)
        return F.interpolate(small, size=images.shape[2:], mode="nearest")

    def _to_pixels(self, normalised: torch.Tensor) -> Pixels:
        """Convert (N, C, H, W) normalised floats back to (N, H, W, 3) uint8."""
        pixels = normalised.permute(0, 2, 3, 1).numpy() * np.array(self._format.std) + np.array(self._format.mean)
        whole: Pixels = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
        return whole if whole.shape[-1] == 3 else whole.repeat(3, axis=-1)
