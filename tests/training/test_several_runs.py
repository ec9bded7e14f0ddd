"""Several trainings in one process, as in a notebook."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState

from cifar10_accel.runs.run_folder import RunFolder
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


def test_accumulation_of_the_callers_accelerator_is_its_own(tmp_path: Path) -> None:
    """Accelerate keeps one count of accumulated batches for all optimizers of a process."""
    own = Accelerator(gradient_accumulation_steps=4)
    model = own.prepare(torch.nn.Linear(1, 1))
    with own.accumulate(model):
        assert not own.sync_gradients
        seen = []

        class Watch:
            def on_step_end(self, context: object) -> None:
                seen.append(GradientState().sync_gradients)

        fit(Settings(**SMALL, run_dir=tmp_path / "run"), callbacks=[Watch()])
        assert seen == [True]
        assert not own.sync_gradients
    assert own.gradient_accumulation_steps == GradientState().num_steps == 4


def test_a_resumed_run_keeps_the_date_of_its_first_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    fit(Settings(**SMALL, run_dir=folder.path))
    folder.write_json("environment.json", folder.read_json("environment.json") | {"date": "2020-02-20T20:20"})
    fit(Settings(**SMALL | {"max_steps": 2}, run_dir=folder.path))
    assert folder.read_json("environment.json")["date"] == "2020-02-20T20:20"
