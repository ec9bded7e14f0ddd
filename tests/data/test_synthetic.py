"""The synthetic data set: a function of seed and index, balanced, too hard for a linear model, easy for a small CNN."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from cifar10_accel.data.synthetic import CLASS_NAMES, draw_images


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("start_of", [100, 1003, 2000])
def test_an_image_does_not_depend_on_the_size_of_the_set(start_of: int) -> None:
    images, labels = draw_images(2400, seed=3, purpose="train")
    fewer, fewer_labels = draw_images(start_of, seed=3, purpose="train")
    np.testing.assert_array_equal(fewer, images[:start_of])
    np.testing.assert_array_equal(fewer_labels, labels[:start_of])


def test_seed_and_purpose_change_every_image() -> None:
    images, _ = draw_images(100, seed=0, purpose="train")
    for seed, purpose in ((1, "train"), (0, "test"), (2**63 - 1, "train")):
        others, _ = draw_images(100, seed=seed, purpose=purpose)
        assert not (images == others).all(axis=(1, 2, 3)).any(), (seed, purpose)


def test_shape_type_range_and_balance() -> None:
    images, labels = draw_images(1000, seed=0, purpose="train")
    assert images.shape == (1000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert labels.dtype == np.int64
    assert len(CLASS_NAMES) == 10
    np.testing.assert_array_equal(np.bincount(labels), [100] * 10)
    assert images.min() == 0
    assert images.max() == 255
    assert 100 < images.mean() < 155, "images are dark or bright as a whole"


def test_all_images_differ() -> None:
    images, _ = draw_images(2000, seed=0, purpose="train")
    assert len(np.unique(images.reshape(2000, -1), axis=0)) == 2000


def test_a_linear_model_stays_under_60_percent() -> None:
    train, test = draw_images(4000, seed=0, purpose="train"), draw_images(1000, seed=0, purpose="test")
    pixels, unseen = (images.reshape(len(images), -1) / np.float32(255) - 0.5 for images, _ in (train, test))
    best = 0.0
    for ridge in (10.0, 1000.0):
        gram = pixels.T @ pixels + ridge * np.eye(pixels.shape[1], dtype=np.float32)
        weights = np.linalg.solve(gram, pixels.T @ (np.eye(10, dtype=np.float32)[train[1]] - 0.1))
        best = max(best, accuracy(unseen @ weights, test[1]))
    assert best < 0.6, f"a linear model reaches {best:.1%}"


def test_a_tiny_convolutional_network_learns_it_in_seconds() -> None:
    torch.manual_seed(0)
    train, test = draw_images(3000, seed=0, purpose="train"), draw_images(1000, seed=0, purpose="test")
    inputs, unseen = (torch.from_numpy(images).permute(0, 3, 1, 2) / 64 - 2 for images, _ in (train, test))
    stages = [(3, 12), (12, 24), (24, 48)]
    layers = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(o), nn.ReLU()) for i, o in stages
    ]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    num_steps = 4 * len(inputs) // 100
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, num_steps)
    for step in range(num_steps):
        chosen = torch.arange(step * 100, step * 100 + 100) * 7 % len(inputs)
        loss = nn.functional.cross_entropy(model(inputs[chosen]), torch.from_numpy(train[1])[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        reached = accuracy(model.eval()(unseen).numpy(), test[1])
    assert reached > 0.5, f"a small network reaches only {reached:.1%}"


def test_drawing_is_fast() -> None:
    start = time.process_time()
    draw_images(2000, seed=0, purpose="train")
    assert time.process_time() - start < 2.5, "24,000 images would take over half a minute"
