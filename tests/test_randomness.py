"""The hash: one definition in two forms, and draws that are uniform and unrelated."""

import numpy as np
import pytest
import torch

from cifar10_accel.randomness import below, draw, draws, keys_for, seed_for, threshold

INDICES = [0, 1, 2, 49_999, 2**40]


def test_the_array_form_equals_the_integer_form() -> None:
    key = seed_for(7, "augment", 3)
    expected = [draw(seed_for(7, "augment", 3, index), 5) for index in INDICES]
    assert draws(keys_for(key, np.array(INDICES)), 5).tolist() == expected
    assert draws(keys_for(key, torch.tensor(INDICES)), 5).tolist() == expected


def test_every_argument_matters() -> None:
    seeds = {
        seed_for(0, "a"),
        seed_for(1, "a"),
        seed_for(0, "b"),
        seed_for(0, "a", 0),
        seed_for(0, "a", 0, 0),
        seed_for(0, "a", 1),
    }
    assert len(seeds) == 6


def test_the_values_never_change() -> None:
    """Recorded once: another value would change every run ever made."""
    assert seed_for(0, "order", 0) == 0x7F989B7CEDF8C584
    assert draw(seed_for(0, "order", 0), 1) == 0x93F5956C


def test_draws_are_uniform_and_independent_between_counters() -> None:
    keys = keys_for(seed_for(0, "test"), np.arange(100_000))
    first, second = below(draws(keys, 0), 16), below(draws(keys, 1), 16)
    counts = np.histogram2d(first, second, bins=16)[0].ravel()
    expected = len(keys) / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 255 + 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1 / 3, 1.0])
def test_the_threshold_is_exact(probability: float) -> None:
    limit = threshold(probability)
    for drawn in {max(0, limit - 1), min(limit, 2**32 - 1)}:
        assert (drawn < limit) == (drawn / 2**32 < probability)
