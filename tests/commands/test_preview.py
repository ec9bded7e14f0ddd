"""Preview of augmented training images: exact pixels for images of any format, by both backends."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_commands import TINY

from cifar10_accel.commands.preview import _Augmenter, preview
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings


def own_dataset(size: int, channels: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (12, size, size, channels), dtype=np.uint8)
    return Dataset(name="own", train=(images, np.arange(12) % 3), test=(images, np.arange(12) % 3))


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (64, 3), (24, 1)])
def test_both_backends_draw_the_same_pixels(size: int, channels: int) -> None:
    dataset = own_dataset(size, channels)
    augmenter = _Augmenter(Settings(**TINY), dataset, [3, 7])
    batched, single = (augmenter.draw(backend, [0, 5]) for backend in ("batched", "albumentations"))
    assert batched.shape == (2, 2, size, size, 3)
    np.testing.assert_array_equal(batched, single)
    assert not np.array_equal(batched[:, 0], batched[:, 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_without_augmentation_the_images_themselves_are_drawn(channels: int) -> None:
    """Normalisation with the values of the data set is undone exactly."""
    dataset = own_dataset(16, channels)
    augmenter = _Augmenter(Settings(**TINY | {"augment": "none"}), dataset, [3, 7])
    drawn = augmenter.draw(augmenter.backend(), [0])[:, 0]
    np.testing.assert_array_equal(drawn, np.broadcast_to(dataset.train.images[[3, 7]], drawn.shape))


def test_a_folder_of_large_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.effect_noise((90, 70), 80).save(tmp_path / split / name / "0.png")
    settings = Settings(**TINY | {"dataset": "folder", "data_dir": tmp_path, "image_size": 60, "val_size": 0})
    preview(settings, epochs=[0, 1], indices=[1], compare=True, path=tmp_path / "preview.png")
    assert Image.open(tmp_path / "preview.png").width > 2 * 60
    with pytest.raises(SettingsError, match="index: 2 is not a training image; give 0 to 1"):
        preview(settings, epochs=[0], indices=[2], compare=False, path=tmp_path / "preview.png")
