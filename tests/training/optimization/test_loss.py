"""The built-in loss against torch's and against its definition."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.settings import Settings
from cifar10_accel.training.optimization.loss import Loss, make_loss

COUNTS = [6, 3, 1]  # training images of each class
LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2])


def loss_of(**settings: Any) -> Loss:
    """Return the loss for ten training images of three classes."""
    part = (np.zeros((10, 8, 8, 3), dtype=np.uint8), np.repeat(np.arange(3), COUNTS))
    return make_loss(Settings(**settings), Dataset(name="own", train=part, test=part), device=torch.device("cpu"))


def test_label_smoothing_is_torchs() -> None:
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
    torch.testing.assert_close(loss_of(label_smoothing=0.2)(LOGITS, LABELS), expected)
    weighted = loss_of(label_smoothing=0.2, class_weights=[1.0, 1.0, 1.0])
    torch.testing.assert_close(weighted(LOGITS, LABELS), expected)


def weight_of(label: int, loss: Loss) -> float:
    """Return the weight of a class in a loss."""
    image, labels = LOGITS[:1], torch.tensor([label])
    return float(loss(image, labels) / F.cross_entropy(image, labels))


def test_balanced_weights_are_inverse_to_the_counts_and_one_in_the_mean_over_the_images() -> None:
    balanced = loss_of(class_weights="balanced")
    weights = [weight_of(label, balanced) for label in range(3)]
    assert weights == pytest.approx([10 / 3 / count for count in COUNTS])
    assert np.dot(weights, COUNTS) / 10 == pytest.approx(1)
