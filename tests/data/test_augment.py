"""The Albumentations pipelines: their transforms, and draws that depend on the image's key alone."""

import os
import pickle
from typing import Any

import albumentations as A
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.data import DataLoader

from cifar10_accel.data.augment.pipeline import AugmentedImages, apply, image_key, image_keys, training_pipeline
from cifar10_accel.data.image_format import CIFAR10_IMAGES
from cifar10_accel.settings import DataSettings

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)

# Transforms that are not lowered, or draw in unusual ways: arrays, choices, shuffles, distributions, nesting.
USERS_OWN = [
    A.OneOf([A.GaussianBlur(p=1), A.MotionBlur(p=1), A.MedianBlur(p=1)], p=0.9),
    A.SomeOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), A.Transpose(p=1)], n=2, p=0.8),
    A.GaussNoise(p=1),
    A.ElasticTransform(p=1),
    A.ColorJitter(p=1),
    A.GridDropout(random_offset=True, p=1),
    A.PixelDropout(p=1),
    A.CoarseDropout(fill="random", p=1),
    A.RandomGridShuffle(p=1),
    A.Sequential([A.Rotate(p=1), A.RandomResizedCrop((32, 32), p=1)], p=0.7),
    A.Posterize(num_bits=(2, 6), p=1),
    A.ISONoise(p=1),
    A.ShotNoise(p=1),
]


def test_importing_albumentations_uses_no_network() -> None:
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


@pytest.mark.parametrize(
    ("augment", "names"),
    [
        ("none", []),
        ("flip", ["HorizontalFlip"]),
        ("cutout,crop", ["CoarseDropout", "Pad", "RandomCrop"]),
        ("crop,flip,cutout", ["Pad", "RandomCrop", "HorizontalFlip", "CoarseDropout"]),
    ],
)
def test_the_pipeline_holds_what_the_settings_name_and_always_normalises(augment: Any, names: list[str]) -> None:
    names_of_settings = () if augment == "none" else tuple(augment.split(","))
    pipeline = training_pipeline(DataSettings(augment=names_of_settings))
    assert [type(transform).__name__ for transform in pipeline.transforms] == [*names, "Normalize", "ToTensorV2"]


def test_without_augmentation_an_image_is_only_normalised() -> None:
    image = apply(training_pipeline(DataSettings(augment=())), IMAGES[0], key=1)
    expected = (IMAGES[0] / 255 - CIFAR10_IMAGES.mean) / CIFAR10_IMAGES.std
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.from_numpy(expected.transpose(2, 0, 1)).float())


@pytest.mark.parametrize("size", [1, 8, 31, 32])
def test_cutout_fills_one_square_with_the_mean(size: int) -> None:
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    pipeline = training_pipeline(DataSettings(augment=("cutout",), cutout_size=size))
    image = apply(pipeline, white, key=3)
    hole = (image.abs() < 0.01).all(0)  # the mean, normalised, is nearly 0
    rows, columns = hole.any(1), hole.any(0)
    assert hole.sum() == size**2
    assert rows.sum() == columns.sum() == size


def test_the_pixels_depend_on_the_key_alone() -> None:
    pipeline = training_pipeline(DataSettings())
    alone = [apply(training_pipeline(DataSettings()), image, key=key) for key, image in enumerate(IMAGES)]
    for key in reversed(range(len(IMAGES))):
        assert torch.equal(apply(pipeline, IMAGES[key], key=key), alone[key])
    copied = pickle.loads(pickle.dumps(pipeline))
    assert torch.equal(apply(copied, IMAGES[0], key=0), alone[0])
    assert len({tuple(apply(pipeline, IMAGES[0], key=key).flatten().tolist()) for key in range(50)}) == 50


@pytest.mark.parametrize("transform", USERS_OWN, ids=lambda transform: type(transform).__name__)
def test_users_own_transforms_are_a_function_of_the_key_too(transform: Any) -> None:
    pipeline = A.Compose([transform, A.Normalize(CIFAR10_IMAGES.mean, CIFAR10_IMAGES.std), A.ToTensorV2()])
    first = [apply(pipeline, IMAGES[0], key=key) for key in range(12)]
    again = [apply(pipeline, IMAGES[0], key=key) for key in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(first[0], other) for other in first[1:])


def test_a_pipeline_without_tensors_at_its_end_gives_a_tensor() -> None:
    image = apply(A.Compose([A.HorizontalFlip(p=0)]), IMAGES[0], key=0)
    assert image.dtype == torch.float32
    assert torch.equal(image, torch.from_numpy(IMAGES[0].transpose(2, 0, 1).copy()).float())


def test_both_forms_of_the_key_are_equal_and_the_lowest_bit_alternates() -> None:
    indices = np.arange(1000)
    by_epoch = [image_keys(5, epoch, indices) for epoch in range(3)]
    assert [image_key(5, 2, index) for index in range(1000)] == [int(key) % 2**64 for key in by_epoch[2]]
    assert torch.equal(image_keys(5, 2, torch.from_numpy(indices)), torch.from_numpy(by_epoch[2]))
    assert ((by_epoch[0] ^ by_epoch[1]) & 1).all()
    assert not ((by_epoch[0] ^ by_epoch[2]) & 1).any()
    assert 400 < (by_epoch[0] & 1).sum() < 600
    assert len(np.unique(np.concatenate(by_epoch))) == 3000


def test_alternating_flips_show_both_orientations_in_each_pair_of_epochs() -> None:
    pipeline = training_pipeline(DataSettings(augment=("flip",), flip_mode="alternating"))
    views = [
        [apply(pipeline, image, key=image_key(0, epoch, i)) for i, image in enumerate(IMAGES)] for epoch in range(4)
    ]
    mirrored_first = 0
    for first, second, third, fourth, image in zip(*views, IMAGES, strict=True):
        plain = apply(training_pipeline(DataSettings(augment=())), image, key=0)
        assert torch.equal(first, third)
        assert torch.equal(second, fourth)
        assert torch.equal(first, second.flip(2))
        mirrored_first += int(not torch.equal(first, plain))
    assert 0 < mirrored_first < len(IMAGES)


def test_loader_workers_make_the_same_pixels_as_none() -> None:
    dataset = AugmentedImages(IMAGES, np.arange(16) % 10, pipeline=training_pipeline(DataSettings()), seed=4)
    batches = [[(epoch, index) for index in range(start, start + 4)] for epoch in range(2) for start in range(0, 16, 4)]

    def load(num_workers: int) -> list[Any]:
        return list(DataLoader(dataset, batch_sampler=batches, num_workers=num_workers))

    alone = load(0)
    for ours, theirs in zip(alone, load(2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    images, labels, indices = alone[0]
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == indices.tolist() == [0, 1, 2, 3]
    assert not torch.equal(alone[0][0], alone[4][0])  # the next epoch
    sent = pickle.loads(pickle.dumps(dataset))  # as sent to a spawned worker
    assert torch.equal(sent[1, 2][0], dataset[1, 2][0])


class TestDraws:
    """The replacements for the random generators of Albumentations."""

    @pytest.fixture
    def transform(self) -> Any:
        pipeline = A.Compose([A.NoOp(p=1)])
        apply(pipeline, IMAGES[0], key=11)
        return pipeline.transforms[0]

    def test_python_numbers_are_uniform(self, transform: Any) -> None:
        draw = transform.py_random
        assert abs(np.mean([draw.random() for _ in range(4000)]) - 0.5) < 0.02
        assert np.bincount([draw.randint(2, 5) for _ in range(4000)], minlength=6)[2:].min() > 900
        assert {draw.choice("abc") for _ in range(100)} == set("abc")
        assert sorted(draw.sample(range(10), 10)) == list(range(10))
        assert abs(np.std([draw.gauss(0, 2) for _ in range(4000)]) - 2) < 0.1
        assert max(draw.randrange(10**30) for _ in range(50)) > 10**29

    def test_arrays_are_uniform_and_of_numpy_s_shapes_and_types(self, transform: Any) -> None:
        draw = transform.random_generator
        many = draw.integers(0, 10, size=(100, 40), dtype=np.uint8)
        assert many.shape == (100, 40)
        assert many.dtype == np.uint8
        assert np.bincount(many.ravel(), minlength=10).min() > 300
        assert {int(draw.integers(1, 2, endpoint=True)) for _ in range(50)} == {1, 2}
        assert draw.integers(0, np.array([1, 1000])).shape == (2,)
        assert draw.integers(0, 2**62) > 2**32
        assert isinstance(draw.random(), float)
        assert abs(draw.uniform(-1, 3, size=4000).mean() - 1) < 0.1
        assert draw.uniform(size=3).tolist() != draw.uniform(size=3).tolist()

    def test_other_methods_are_real_ones_seeded_by_the_stream(self, transform: Any) -> None:
        draw = transform.random_generator
        first, second = draw.normal(size=4000), draw.normal(size=4000)
        assert not np.array_equal(first, second)
        assert abs(first.std() - 1) < 0.05

    def test_a_few_and_many_draws_are_the_same_numbers(self, transform: Any) -> None:
        def first_of(count: int) -> npt.NDArray[np.int64]:
            apply(A.Compose([transform]), IMAGES[0], key=11)
            return np.asarray(transform.random_generator.integers(0, 1000, size=count))[:5]

        assert first_of(5).tolist() == first_of(500).tolist()
