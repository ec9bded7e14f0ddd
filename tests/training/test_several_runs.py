"""Several trainings in one process, as in a notebook."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

SMALL = {
    "recipe": "smoke",
    "dataset": "synthetic",
    "synthetic_size": 100,
    "batch_size": 50,
    "width": 4,
    "max_steps": 1,
    "num_threads": 1,
    "tracker": "none",
}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="precisions of a CPU")
def test_each_run_has_its_own_precision(tmp_path: Path) -> None:
    own = Accelerator(mixed_precision="no")
    losses = [
        fit(Settings(**SMALL, precision=precision, run_dir=tmp_path / str(number))).summary["test/loss"]
        for number, precision in enumerate(["no", "bf16", "no"])
    ]
    assert losses[0] == losses[2] != losses[1]
    assert own.mixed_precision == "no"
