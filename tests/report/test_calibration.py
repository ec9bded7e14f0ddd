"""Calibration against cases computed by hand."""

import numpy as np
import pytest

from cifar10_accel.report.calibration import fit_temperature, negative_log_likelihood, reliability, scale_by_temperature


def test_bins_and_expected_calibration_error() -> None:
    """Four images: two at confidence 0.9 of which one is correct, two at 0.6 that are both correct."""
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
    """Labels drawn from the probabilities themselves; then all logits are multiplied by three."""
    random = np.random.default_rng(0)
    calibrated = scale_by_temperature(random.dirichlet(np.ones(5), size=20_000), 1.0)
    labels = np.array([random.choice(5, p=row) for row in calibrated])
    assert fit_temperature(calibrated, labels) == pytest.approx(1.0, abs=0.05)
    overconfident = scale_by_temperature(calibrated, 1 / 3)
    assert (overconfident.argmax(axis=1) == calibrated.argmax(axis=1)).all()
    assert fit_temperature(overconfident, labels) == pytest.approx(3.0, abs=0.15)
    assert (
        reliability(scale_by_temperature(overconfident, 3.0), labels).ece()
        < 0.02
        < reliability(overconfident, labels).ece()
    )
