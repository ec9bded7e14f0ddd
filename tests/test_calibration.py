"""Calibration against cases that a hand can compute."""

import numpy as np
import pytest

from cifar10_accel.calibration import fit_temperature, negative_log_likelihood, reliability, scaled


def test_bins_and_expected_calibration_error() -> None:
    """Four images: two at confidence 0.9 of which one is right, two at 0.6 that are both right."""
    probabilities = [[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.6, 0.4]]
    found = reliability(probabilities, [0, 0, 0, 0], num_bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]
    assert found.accuracy[[5, 8]].tolist() == [1.0, 0.5]
    assert found.confidence[[5, 8]] == pytest.approx([0.6, 0.9])
    assert found.ece() == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert np.isnan(reliability(np.zeros((0, 2)), []).ece())


def test_likelihood_loss() -> None:
    assert negative_log_likelihood([[0.5, 0.5], [0.25, 0.75]], [0, 1]) == pytest.approx((np.log(2) + np.log(4 / 3)) / 2)


def test_the_temperature_that_made_it_is_found_again() -> None:
    """Labels drawn from the probabilities themselves; then everything is said three times as surely."""
    random = np.random.default_rng(0)
    honest = scaled(random.dirichlet(np.ones(5), size=20_000), 1.0)
    labels = np.array([random.choice(5, p=row) for row in honest])
    assert fit_temperature(honest, labels) == pytest.approx(1.0, abs=0.05)
    too_sure = scaled(honest, 1 / 3)
    assert (too_sure.argmax(axis=1) == honest.argmax(axis=1)).all()
    assert fit_temperature(too_sure, labels) == pytest.approx(3.0, abs=0.15)
    assert reliability(scaled(too_sure, 3.0), labels).ece() < 0.02 < reliability(too_sure, labels).ece()
