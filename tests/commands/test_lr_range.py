"""LR range test: suggestions for several curves, and none for a curve without a minimum."""

import math
from pathlib import Path

import pytest

from cifar10_accel.commands.lr_range import LrRangeResult, suggest, write
from cifar10_accel.errors import SettingsError
from cifar10_accel.training.optimization.lr_schedule import LrRange

LRS = [LrRange(total_steps=100, min_lr=1e-4, max_lr=10, growth="exponential").lr_at(step) for step in range(100)]


def result(losses: list[float]) -> LrRangeResult:
    """Return the result of a curve with these losses, from the lowest LR on."""
    return suggest(LRS[: len(losses)], losses, [0.1] * len(losses), dataset="synthetic")


def test_a_curve_that_falls_and_rises() -> None:
    """Falls fastest around LR 0.01, is lowest near 0.3, rises after."""
    losses = [2.3 - 1 / (1 + (0.01 / lr) ** 1.5) + max(0.0, math.log(lr / 0.3)) for lr in LRS]
    found = result(losses)
    assert found.reason == ""
    assert found.steepest is not None
    assert 0.005 < found.steepest < 0.05  # smoothing shifts it up a little
    assert found.tenth_of_minimum == pytest.approx(0.05, rel=0.5)


def test_a_loss_that_falls_to_the_end_has_no_minimum() -> None:
    found = result([2.3 - 0.01 * step for step in range(100)])
    assert (found.reason, found.tenth_of_minimum) == ("", None)


@pytest.mark.parametrize("end_lr", [0.5, 0.1, 0.5 + 1e-15, 0.504, math.nan], ids=repr)
def test_bounds_that_do_not_rise_are_refused_before_the_test(end_lr: float) -> None:
    with pytest.raises(SettingsError, match=f"end-lr: {end_lr:g} is not above the first LR, 0.5"):
        LrRange(total_steps=10, min_lr=0.5, max_lr=end_lr, growth="linear")


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([2.3] * 100, "never fell"),
        ([2.3] * 4, "diverged after 4 steps"),
        ([], "diverged after 0 steps"),
        ([2.3, *[2.3 + step for step in range(30)]], "never fell"),
    ],
)
def test_no_suggestion_rather_than_a_wrong_one(losses: list[float], reason: str) -> None:
    found = result(losses)
    assert reason in found.reason
    assert (found.steepest, found.tenth_of_minimum) == (None, None)


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_place_that_cannot_be_written_is_one_line(is_folder: bool, tmp_path: Path) -> None:
    (tmp_path / "out" / "lr_range.png").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"^out: \S+ cannot be written \(.+\); give another --out$"):
        write(result([2.3] * 20), tmp_path / ("out" if is_folder else "file"))
