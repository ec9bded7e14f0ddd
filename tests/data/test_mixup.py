"""MixUp and CutMix: the mixed pixels, their weights and their random draws."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cifar10_accel.data.mixup import Mixed, mix

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)).contiguous(
    memory_format=torch.channels_last
)
LABELS = torch.arange(6)


def mixed(step: int, *, mixup_alpha: float | None = None, cutmix_alpha: float | None = None, seed: int = 0) -> Mixed:
    return mix(IMAGES, LABELS, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, seed=seed, step=step)


def from_partner(result: Mixed) -> Tensor:
    """Return the mask of pixels that come from the neighbour: (N, 32, 32) bool."""
    own = (result.images == IMAGES).all(1)
    partners = (result.images == IMAGES.roll(1, 0)).all(1)
    assert (own ^ partners).all()
    return partners


def test_without_an_alpha_nothing_is_mixed() -> None:
    result = mixed(3)
    assert torch.equal(result.images, IMAGES)
    assert torch.equal(result.partner_labels, LABELS)
    assert result.weight == 1


def test_mixup_blends_each_image_with_its_neighbour() -> None:
    result = mixed(3, mixup_alpha=1.0)
    torch.testing.assert_close(result.images, result.weight * IMAGES + (1 - result.weight) * IMAGES.roll(1, 0))
    assert result.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert result.partner_labels.tolist() == [5, 0, 1, 2, 3, 4]
    assert 0 < result.weight < 1


def test_cutmix_puts_one_box_of_the_neighbour_into_each_image() -> None:
    for step in range(200):
        result = mixed(step, cutmix_alpha=1.0)
        box = from_partner(result)
        assert (box == box[0]).all()
        assert box[0].sum() == box[0].any(0).sum() * box[0].any(1).sum()
        assert box[0].float().mean().item() == pytest.approx(1 - result.weight)


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}])
def test_the_same_seed_and_step_give_the_same_and_others_do_not(alphas: Any) -> None:
    assert torch.equal(mixed(7, **alphas).images, mixed(7, **alphas).images)
    assert len({mixed(step, seed=seed, **alphas).weight for step in range(20) for seed in range(2)}) > 30


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}])
def test_the_given_images_and_their_memory_format_are_kept(alphas: Any) -> None:
    before = IMAGES.clone()
    assert mixed(1, **alphas).images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(IMAGES, before)


def test_mixup_weights_follow_the_beta_distribution() -> None:
    weights = [mixed(step, mixup_alpha=0.2).weight for step in range(3000)]
    assert np.mean(weights) == pytest.approx(0.5, abs=0.03)
    assert np.var(weights) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)


def test_cutmix_boxes_lie_everywhere() -> None:
    hits = sum(from_partner(mixed(step, cutmix_alpha=1.0))[0].double() for step in range(1500)) / 1500
    assert hits.min() > 0.1
    torch.testing.assert_close(hits, hits.flip(0), atol=0.06, rtol=0)
    torch.testing.assert_close(hits, hits.T, atol=0.06, rtol=0)


def test_with_both_a_coin_decides_for_each_step() -> None:
    pixels = [mixed(step, mixup_alpha=1.0, cutmix_alpha=1.0).images[0] for step in range(400)]
    boxes = sum(((image == IMAGES[0]) | (image == IMAGES[5])).all().item() for image in pixels)
    assert 150 < boxes < 250
