"""The LR curve against its definition and against torch's own one-cycle."""

import pytest
import torch

from cifar10_accel.settings import Settings
from cifar10_accel.training.optimization.lr_schedule import LrRange, OneCycle


def test_start_peak_and_end_are_exact() -> None:
    curve = OneCycle(total_steps=100, peak_step=20, initial_lr=0.04, max_lr=0.4, final_lr=0.0, anneal="linear")
    assert curve.lr_at(0) == 0.04
    assert curve.lr_at(10) == pytest.approx(0.22)
    assert curve.lr_at(20) == 0.4
    assert curve.lr_at(99) == 0.0
    assert curve.lr_at(1000) == 0.0
    assert max(curve.lr_at(step) for step in range(100)) == 0.4


def test_without_annihilation_the_last_lr_is_the_first() -> None:
    curve = OneCycle.of(Settings(max_lr=0.04, div_factor=10, final_div_factor=1), steps_per_epoch=97)
    assert curve.lr_at(0) == pytest.approx(0.004) == curve.lr_at(24 * 97 - 1)
    assert curve.lr_at(5 * 97) == pytest.approx(0.04)


def test_a_peak_at_the_start_and_at_the_end() -> None:
    for peak_step in (0, 9):
        curve = OneCycle(total_steps=10, peak_step=peak_step, initial_lr=0.1, max_lr=1.0, final_lr=0.01, anneal="cos")
        assert curve.lr_at(peak_step) == 1.0


@pytest.mark.parametrize("anneal", ["linear", "cos"])
def test_the_curve_is_torchs(anneal: str) -> None:
    """torch's schedule peaks one step before pct_start * total_steps; ours takes the step of the peak."""
    total, peak = 60, 12
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.4,
        total_steps=total,
        pct_start=(peak + 1) / total,
        anneal_strategy=anneal,
        div_factor=25,
        final_div_factor=1e4,
        cycle_momentum=False,
    )
    ours = OneCycle(
        total_steps=total, peak_step=peak, initial_lr=0.016, max_lr=0.4, final_lr=0.016 / 1e4, anneal=anneal
    )
    for step in range(total):
        assert ours.lr_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_the_range_test_ramps_between_its_bounds() -> None:
    ramp = LrRange(total_steps=11, min_lr=1e-4, max_lr=1.0, growth="exponential")
    assert [ramp.lr_at(0), ramp.lr_at(5), ramp.lr_at(10)] == pytest.approx([1e-4, 1e-2, 1.0])
    ramp = LrRange(total_steps=11, min_lr=0.0, max_lr=1.0, growth="linear")
    assert ramp.lr_at(5) == pytest.approx(0.5)
