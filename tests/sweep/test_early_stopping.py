"""Early termination of a sweep happens at the rungs that W&B's `hyperband` has, and at no others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cifar10_accel.sweep.file import read_sweep
from cifar10_accel.sweep.search import Search

pytest.importorskip("optuna")

STEPS = 40


def wandb_bands(given: dict[str, Any]) -> list[int]:
    """Return the numbers of values at which W&B compares trials (sweeps 0.3.0, hyperband_stop_runs)."""
    eta = given.get("eta", 3)
    if "max_iter" in given:
        return sorted(int(given["max_iter"] / eta**power) for power in range(1, given["s"] + 1))
    return [band for power in range(20) if (band := given["min_iter"] * eta**power) <= STEPS]


@pytest.mark.parametrize(
    "given",
    [
        {"min_iter": 2, "eta": 2},
        {"min_iter": 3},
        {"max_iter": 27, "s": 2},
        {"max_iter": 16, "s": 2, "eta": 2},
        {"max_iter": 16, "s": 1, "eta": 2, "strict": True},
    ],
    ids=str,
)
def test_trials_are_compared_at_the_rungs_of_wandb(given: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    parameters = {"recipe": {"value": "smoke"}, "val_size": {"value": 40}, "max_lr": {"min": 0.1, "max": 0.2}}
    values = {"method": "random", "metric": {"name": "val/accuracy", "goal": "maximize"}, "parameters": parameters}
    file.write_text(yaml.safe_dump(values | {"early_terminate": {"type": "hyperband"} | given}))
    sweep = read_sweep(file)
    bands = wandb_bands(given)
    for band in bands:  # a trial that falls behind at this rung is stopped there
        search = Search(sweep, tmp_path / str(band), storage=None)
        leader, other = search.claim(num_trials=2), search.claim(num_trials=2)
        assert leader is not None
        assert other is not None
        leader.report([0.5] * STEPS, seconds=1)
        curve = [0.9] * (band - 1) + [0.1]
        stopped = [step for step in range(1, band + 1) if other.report(curve[:step], seconds=1)]
        assert stopped == [band]
    search = Search(sweep, tmp_path / "after", storage=None)
    leader, other = search.claim(num_trials=2), search.claim(num_trials=2)
    assert leader is not None
    assert other is not None
    leader.report([0.5] * STEPS, seconds=1)
    behind_between_rungs = [0.9 if step in bands else 0.1 for step in range(1, STEPS + 1)]
    assert not [step for step in range(1, STEPS + 1) if other.report(behind_between_rungs[:step], seconds=1)]
