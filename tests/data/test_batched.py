"""The batched pipeline compared with Albumentations: equal pixels, and the specified distributions."""

import math
import warnings
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifar10_accel.data.augment.batched import NotLowerable, lower, normalize
from cifar10_accel.data.augment.flip import AlternatingFlip
from cifar10_accel.data.augment.pipeline import apply, image_key, image_keys, training_pipeline
from cifar10_accel.data.image_format import CIFAR10_IMAGES
from cifar10_accel.settings import DataSettings

MEAN, STD = CIFAR10_IMAGES.mean, CIFAR10_IMAGES.std

NUM_IMAGES = 200
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
BATCH = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)  # (N, 3, 32, 32) uint8, channels_last
BORDERS = [cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT, cv2.BORDER_WRAP, cv2.BORDER_REFLECT_101]

# Every supported transform, with options for each path through its code.
COVERED = [
    [A.Pad(4, fill=(1, 2, 3)), A.RandomCrop(32, 32)],
    [A.Pad((3, 5), border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(32, 32)],
    [A.Pad((1, 2, 3, 4), border_mode=cv2.BORDER_REPLICATE)],
    *([A.Pad((35, 0, 1, 40), border_mode=border, fill=77.5)] for border in BORDERS),
    [A.PadIfNeeded(40, 44, border_mode=cv2.BORDER_WRAP, position="bottom_left")],
    [A.PadIfNeeded(41, 37, position="random", fill=9), A.RandomCrop(33, 31)],
    [A.PadIfNeeded(None, None, pad_height_divisor=7, pad_width_divisor=5)],
    [A.RandomCrop(24, 20), A.PadIfNeeded(32, 32, fill=128)],
    [A.RandomCrop(36, 28, pad_if_needed=True, pad_position="random", border_mode=cv2.BORDER_REFLECT)],
    [A.RandomCrop(40, 40, pad_if_needed=True, fill=(200, 100, 0))],
    [A.CenterCrop(20, 30), A.Crop(2, 3, 20, 19)],
    [A.Crop(4, 6, 40, 36, pad_if_needed=True, fill=50)],
    [A.CropAndPad(px=3, keep_size=False), A.CropAndPad(px=(4, -2, -4, 2), fill=200)],
    [A.CropAndPad(percent=(-0.1, 0.2, 0.1, -0.2), keep_size=False, border_mode=cv2.BORDER_REFLECT_101)],
    [A.HorizontalFlip(p=0.3)],
    [A.VerticalFlip(p=0.5), A.HorizontalFlip(p=1), A.VerticalFlip(p=0)],
    [AlternatingFlip(), A.HorizontalFlip(p=0.5)],
    [A.CoarseDropout((1, 1), (8, 8), (8, 8), fill=(125, 123, 114), p=1)],
    [A.CoarseDropout((1, 4), (1, 40), (3, 12), fill=33, p=0.6)],
    [A.CoarseDropout((2, 2), (0.05, 0.6), (0.3, 0.3), p=0.5)],
    [A.CoarseDropout((1, 3), (6, 9), (6, 9), fill=255, p=1), A.Pad(4, fill=(9, 8, 7)), A.RandomCrop(32, 32)],
    [A.Affine(translate_px=(-5, 3), p=0.7, fill=(4, 5, 6))],
    *([A.Affine(translate_px={"x": (-40, 40), "y": (-3, 3)}, border_mode=border, p=0.9)] for border in BORDERS),
    [A.Affine(translate_percent={"x": (-0.2, 0.1), "y": (0, 0.3)}, interpolation=cv2.INTER_NEAREST, p=1)],
    [A.Affine(translate_percent=(-0.3, 0.3), border_mode=cv2.BORDER_REFLECT_101, p=0.8)],
    [A.RandomBrightnessContrast(p=1)],
    [A.RandomBrightnessContrast((-0.9, 0.4), (0.1, 0.8), p=0.5)],
    [A.Pad(2), A.RandomBrightnessContrast(0.5, 0.5, brightness_by_max=False, p=0.8), A.RandomCrop(32, 32)],
    [A.ToGray(p=0.4), A.CoarseDropout(p=1)],
    [A.ToGray(p=1), A.Normalize()],
    [A.Normalize(0.5, 0.25), A.ToTensorV2()],
    [A.Normalize(MEAN, STD), A.CoarseDropout(fill=0.25, p=1), A.Pad(3, fill=(0.1, 0.2, 0.3)), A.RandomCrop(32, 32)],
]


def shift_scale_rotate(**given: Any) -> Any:
    """Return A.ShiftScaleRotate, the deprecated form of Affine, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return A.ShiftScaleRotate(**given)


COVERED.append([shift_scale_rotate(shift_limit=0.2, scale_limit=0, rotate_limit=0, p=0.9)])


def first_difference(pipeline: A.Compose, *, seed: int, epoch: int, num_images: int) -> str:
    """Run both backends and describe the first unequal pixel; empty if there is none."""
    batched = lower(pipeline)(BATCH[:num_images], image_keys(seed, epoch, torch.arange(num_images)), torch.float32)
    for index in range(num_images):
        expected = apply(pipeline, IMAGES[index], key=image_key(seed, epoch, index))
        if expected.shape != batched[index].shape:
            return f"index {index}: shape {tuple(expected.shape)} != {tuple(batched[index].shape)}"
        if not torch.equal(batched[index], expected):
            place = tuple((batched[index] != expected).nonzero()[0].tolist())
            return f"index {index}, {place}: {batched[index][place]} is not {expected[place]}"
    return ""


@pytest.mark.parametrize("transforms", COVERED, ids=lambda transforms: "-".join(type(t).__name__ for t in transforms))
def test_both_backends_give_the_same_pixels(transforms: list[Any]) -> None:
    """1,000 pairs of (epoch, index) for each pipeline, compared bit for bit."""
    pipeline = A.Compose(transforms)
    for epoch in range(5):
        assert first_difference(pipeline, seed=1, epoch=epoch, num_images=NUM_IMAGES) == ""


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
@pytest.mark.parametrize("flip_mode", ["random", "alternating"])
def test_both_backends_give_the_same_pixels_for_the_training_pipeline(pad_mode: Any, flip_mode: Any) -> None:
    pipeline = training_pipeline(DataSettings(pad_mode=pad_mode, flip_mode=flip_mode, crop_padding=5, cutout_size=12))
    for epoch in range(5):
        assert first_difference(pipeline, seed=2**63 - 1, epoch=epoch, num_images=NUM_IMAGES) == ""


@pytest.mark.parametrize("transforms", COVERED, ids=lambda transforms: "-".join(type(t).__name__ for t in transforms))
def test_no_step_waits_for_the_device(transforms: list[Any]) -> None:
    """Tensors on the meta device have no values: reading one would raise an error."""
    result = lower(A.Compose(transforms))(
        BATCH.to("meta"), torch.empty(NUM_IMAGES, dtype=torch.int64, device="meta"), torch.float32
    )
    assert result.device.type == "meta"
    assert len(result) == NUM_IMAGES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_makes_the_same_pixels_as_the_cpu() -> None:
    keys = image_keys(0, 0, torch.arange(NUM_IMAGES))
    for transforms in COVERED:
        augment = lower(A.Compose(transforms))
        on_gpu = augment(BATCH.cuda(), keys.cuda(), torch.float32)
        assert torch.equal(on_gpu.cpu(), augment(BATCH, keys, torch.float32))


def test_any_split_into_batches_and_any_memory_format_give_the_same_pixels() -> None:
    augment = lower(training_pipeline(DataSettings()))
    keys = image_keys(0, 0, torch.arange(NUM_IMAGES))
    whole = augment(BATCH, keys, torch.float32)
    parts = [augment(BATCH[a:b].contiguous(), keys[a:b], torch.float32) for a, b in ((0, 1), (1, 64), (64, NUM_IMAGES))]
    assert torch.equal(whole, torch.cat(parts))
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in [whole, *parts])
    assert augment(BATCH[:0], keys[:0], torch.float32).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_dtype_asked_for(dtype: torch.dtype) -> None:
    keys = image_keys(0, 0, torch.arange(NUM_IMAGES))
    augment = lower(training_pipeline(DataSettings()))
    assert torch.equal(augment(BATCH, keys, dtype), augment(BATCH, keys, torch.float32).to(dtype))
    assert normalize(BATCH, dtype).dtype == dtype
    assert normalize(BATCH, dtype).is_contiguous(memory_format=torch.channels_last)


def test_the_images_themselves_are_left_alone() -> None:
    before = BATCH.clone()
    for transforms in COVERED:
        lower(A.Compose(transforms))(BATCH, image_keys(0, 0, torch.arange(NUM_IMAGES)), torch.float32)
    assert torch.equal(BATCH, before)


def test_normalisation_equals_albumentations_for_every_pixel_value() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3)
    expected = apply(training_pipeline(DataSettings(augment=())), values[0], key=0)
    assert torch.equal(normalize(torch.from_numpy(values).permute(0, 3, 1, 2), torch.float32)[0], expected)


class OwnFlip(A.HorizontalFlip):  # type: ignore[misc]
    """A user's subclass, which may do anything."""


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([A.GaussianBlur()], "GaussianBlur"),
        ([A.OneOf([A.HorizontalFlip(), A.VerticalFlip()])], "OneOf"),
        ([OwnFlip()], "OwnFlip"),
        ([A.Pad(4, p=0.5)], r"Pad \(p=0.5 leaves images of two sizes"),
        ([A.RandomCrop(24, 24, p=0.5)], r"RandomCrop \(p=0.5 leaves images of two sizes"),
        ([A.Crop(0, 0, 40, 40)], r"Crop \(reaches beyond"),
        ([A.CropAndPad(px=(-4, 4))], r"CropAndPad \(random amounts"),
        ([A.CropAndPad(px=4)], r"CropAndPad \(keep_size=True resizes"),
        ([A.Affine(rotate=(-10, 10))], r"Affine \(more than a shift"),
        ([A.Affine(scale=(0.9, 1.1))], r"Affine \(more than a shift"),
        ([shift_scale_rotate()], r"ShiftScaleRotate \(more than a shift"),
        ([A.Affine(translate_px=2, interpolation=cv2.INTER_CUBIC)], r"Affine \(interpolation"),
        ([A.CoarseDropout(fill="random")], r"CoarseDropout \(fill='random'"),
        ([A.RandomBrightnessContrast(ensure_safe_range=True)], r"RandomBrightnessContrast \(ensure_safe_range"),
        ([A.Normalize(), A.RandomBrightnessContrast()], r"RandomBrightnessContrast \(after Normalize"),
        ([A.Normalize(normalization="image")], r"Normalize \("),
        ([A.ToGray(method="pca")], r"ToGray \("),
        ([A.HorizontalFlip()] * 2, r"HorizontalFlip \(one object twice"),
        ([A.ToTensorV2(), A.HorizontalFlip()], r"ToTensorV2 \(before the end"),
    ],
)
def test_what_cannot_be_lowered_is_named(transforms: list[Any], message: str) -> None:
    with pytest.raises(NotLowerable, match=f"^{message}"):
        lower(A.Compose(transforms))


def test_a_whole_pipeline_that_is_sometimes_skipped_cannot_be_lowered() -> None:
    with pytest.raises(NotLowerable, match="Compose"):
        lower(A.Compose([A.HorizontalFlip()], p=0.5))


def coordinates(num_images: int) -> Tensor:
    """Return images whose first channel is the row and whose second is the column, both from 1."""
    row, column = torch.meshgrid(torch.arange(1, 33), torch.arange(1, 33), indexing="ij")
    image = torch.stack([row, column, torch.full_like(row, 200)]).to(torch.uint8)
    return image[None].repeat(num_images, 1, 1, 1)


def assert_uniform(*values: Tensor, sizes: tuple[int, ...]) -> None:
    """Check by chi-square, within 5 standard deviations, that all cells of the joint histogram are equally frequent."""
    table, _ = np.histogramdd([value.numpy() for value in values], bins=sizes, range=[(0, size) for size in sizes])
    cells = math.prod(sizes)
    expected = len(values[0]) / cells
    chi_square = float(((table - expected) ** 2 / expected).sum())
    assert abs(chi_square - (cells - 1)) < 5 * math.sqrt(2 * (cells - 1))


def test_offsets_flips_and_boxes_are_uniform_and_independent() -> None:
    num_images = 20_000
    transforms = [
        A.Pad(4),
        A.RandomCrop(32, 32),
        A.HorizontalFlip(p=0.5),
        A.CoarseDropout((1, 1), (8, 8), (8, 8), fill=255, p=1),
    ]
    result = lower(A.Compose(transforms))(
        coordinates(num_images), image_keys(3, 0, torch.arange(num_images)), torch.float32
    )
    rows, columns, third = result[:, 0].long(), result[:, 1].long(), result[:, 2]
    hole = third == 255
    known = ~hole & (third > 0)
    flipped = (columns.where(known, 0).argmax(2) < columns.where(known, 99).argmin(2)).float().mean(1) > 0.5
    number = torch.arange(32)
    down = (rows - number[:, None]).where(known, -99).amax((1, 2)) + 3  # 0 .. 8
    across = torch.where(flipped[:, None, None], columns - (31 - number), columns - number)
    right = across.where(known, -99).amax((1, 2)) + 3
    top, left = hole.any(2).int().argmax(1), hole.any(1).int().argmax(1)
    assert_uniform(down, right, sizes=(9, 9))
    assert_uniform(flipped.long(), down, sizes=(2, 9))
    assert_uniform(top, left, sizes=(25, 25))
    assert_uniform(flipped.long(), top, sizes=(2, 25))


def test_the_ranges_of_holes_are_uniform() -> None:
    num_images = 20_000
    dropout = A.CoarseDropout((1, 1), (3, 10), (5, 6), fill=255, p=0.75)
    result = lower(A.Compose([dropout]))(
        coordinates(num_images), image_keys(3, 1, torch.arange(num_images)), torch.float32
    )
    hole = result[:, 2] == 255
    there = hole.any(2).any(1)
    heights, widths = hole.any(2).sum(1)[there], hole.any(1).sum(1)[there]
    assert abs(there.double().mean() - 0.75) < 0.02
    assert_uniform(heights - 3, widths - 5, sizes=(8, 2))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_transform_is_applied_with_its_probability(p: float) -> None:
    num_images = 20_000
    result = lower(A.Compose([A.VerticalFlip(p=p)]))(
        coordinates(num_images), image_keys(0, 7, torch.arange(num_images)), torch.float32
    )
    assert abs((result[:, 0, 0, 0] == 32).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / num_images)


FILLS = st.one_of(st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3))
CHANCES = st.sampled_from([0.0, 0.25, 0.5, 1.0])
AMOUNTS = st.integers(0, 9)
RANGES = st.tuples(st.integers(-9, 9), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1]))
# A training in the same process makes the CPU flush subnormal numbers, which hypothesis reports as an error.
LIMITS = st.tuples(st.floats(-0.5, 0.5, allow_subnormal=False), st.floats(0, 0.5, allow_subnormal=False)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
SIZES = st.tuples(st.integers(1, 12), st.integers(0, 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))
POSITIONS = st.sampled_from(["center", "top_left", "top_right", "bottom_left", "bottom_right", "random"])
TRANSFORMS = st.one_of(
    st.builds(A.Pad, st.tuples(*[AMOUNTS] * 4), fill=FILLS, border_mode=st.sampled_from(BORDERS)),
    st.builds(A.PadIfNeeded, st.integers(20, 44), st.integers(20, 44), position=POSITIONS, fill=FILLS),
    st.builds(
        A.RandomCrop,
        st.integers(20, 40),
        st.integers(20, 40),
        pad_if_needed=st.just(True),
        fill=FILLS,
        pad_position=POSITIONS,
        border_mode=st.sampled_from(BORDERS),
    ),
    st.builds(A.HorizontalFlip, p=CHANCES),
    st.builds(A.VerticalFlip, p=CHANCES),
    st.builds(AlternatingFlip),
    st.builds(A.CoarseDropout, st.sampled_from([(1, 1), (1, 3), (2, 2)]), SIZES, SIZES, fill=FILLS, p=CHANCES),
    st.builds(
        A.Affine,
        translate_px=st.fixed_dictionaries({"x": RANGES, "y": RANGES}),
        fill=FILLS,
        p=CHANCES,
        border_mode=st.sampled_from(BORDERS),
    ),
    st.builds(A.RandomBrightnessContrast, LIMITS, LIMITS, brightness_by_max=st.booleans(), p=CHANCES),
    st.builds(A.ToGray, p=CHANCES),
)


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(transforms=st.lists(TRANSFORMS, max_size=6), normalised=st.booleans(), seed=st.integers(0, 2**63 - 1))
def test_random_pipelines_of_covered_transforms(transforms: list[Any], normalised: bool, seed: int) -> None:
    pipeline = A.Compose([*transforms, *([A.Normalize(MEAN, STD), A.ToTensorV2()] if normalised else [])])
    assert first_difference(pipeline, seed=seed, epoch=0, num_images=12) == ""
