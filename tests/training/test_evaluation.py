"""Test-time augmentation of the least certain images only."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cifar10_accel.data.dataset import Split
from cifar10_accel.models.registry import build_model
from cifar10_accel.settings import ModelSettings
from cifar10_accel.training.evaluation import _least_certain, evaluate_split


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSettings(width=4), num_classes=10)


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
