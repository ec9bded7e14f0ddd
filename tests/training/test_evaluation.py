"""Test-time augmentation: the views and their mean, of all images and of the least certain ones."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cifar10_accel.data.dataset import Split
from cifar10_accel.data.image_format import CIFAR10_IMAGES
from cifar10_accel.models.registry import build_model
from cifar10_accel.settings import ModelSettings
from cifar10_accel.training.evaluation import VIEWS, _least_certain, evaluate_split

Floats = npt.NDArray[np.float64]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSettings(width=4), num_classes=10)


def both_flips(images: Floats, logits: Callable[[Floats], Floats]) -> Floats:
    """The mean of the logits of images (N, C, H, W) and of their mirror images."""
    return (logits(images) + logits(images[..., ::-1])) / 2


def multicrop(images: Floats, logits: Callable[[Floats], Floats]) -> Floats:
    """Half of the weight for the images, half for their shifts by one pixel along one diagonal; each is flipped too."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    shifted = [both_flips(padded[..., part, part], logits) for part in (slice(0, -2), slice(2, None))]
    return both_flips(images, logits) / 2 + sum(shifted) / 4


@pytest.mark.parametrize(("tta", "views"), [("flip", both_flips), ("multicrop", multicrop)])
def test_the_logits_of_the_views_are_averaged(tta: str, views: Callable[..., Floats]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3 * 32 * 32, 10)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    _, found = evaluate_split(
        Accelerator(),
        nn.Sequential(nn.Flatten(), linear, nn.Tanh()),
        Split(pixels, np.arange(7)),
        batch_size=3,
        tta=tta,
    )
    weight, bias = (parameter.detach().double().numpy() for parameter in (linear.weight, linear.bias))
    images = ((pixels / 255 - CIFAR10_IMAGES.mean) / CIFAR10_IMAGES.std).transpose(0, 3, 1, 2)
    expected = np.exp(views(images, lambda images: np.tanh(images.reshape(len(images), -1) @ weight.T + bias)))
    assert found is not None
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("tta", VIEWS)
def test_the_weights_of_the_views_sum_to_one(tta: str) -> None:
    assert sum(weight for weight, *_ in VIEWS[tta]) == 1


@pytest.mark.parametrize("batch_size", [5, 100])
def test_only_the_least_certain_quarter_gets_the_views(model: nn.Module, batch_size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (22, 32, 32, 3), dtype=np.uint8)
    split, accelerator = Split(images, np.arange(22) % 10), Accelerator()
    plain, all_views = evaluate_split(accelerator, model, split, batch_size=batch_size, tta="multicrop")
    other_plain, some_views = evaluate_split(
        accelerator, model, split, batch_size=batch_size, tta="multicrop_uncertain"
    )
    assert all_views is not None
    assert some_views is not None
    np.testing.assert_allclose(other_plain.probabilities, plain.probabilities, rtol=1e-5)
    uncertain = _least_certain(torch.from_numpy(plain.probabilities).log()).numpy()
    assert len(uncertain) == 6  # a quarter of 22, rounded up
    expected = plain.probabilities.copy()
    expected[uncertain] = all_views.probabilities[uncertain]
    np.testing.assert_allclose(some_views.probabilities, expected, rtol=1e-5)
    assert not np.allclose(some_views.probabilities, plain.probabilities, rtol=1e-5)


def test_certainty_is_the_difference_of_the_two_largest_logits() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0], [9.0, 0.0, 8.5], [0.0, 0.1, 9.0], [2.0, 2.9, 0.0], [7.0, 0.0, 0.0]])
    assert _least_certain(logits).tolist() == [1, 3]


def test_with_one_class_all_images_are_equally_certain() -> None:
    assert _least_certain(torch.randn(6, 1)).tolist() == [0, 1]
