"""Metrics that are read later than they are computed, as on a GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor
from training_commands import TINY

from cifar10_accel import train as train_module
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training import stopwatch
from cifar10_accel.training.async_reader import AsyncReader


@pytest.mark.parametrize("reads_later", [False, True])
def test_every_line_has_the_speed_of_its_own_steps(
    reads_later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second; checkpoints and evaluations, before which all is read, take none."""
    seconds = [0.0]
    take_step = train_module.train_step

    def timed_step(*args: Any, **options: Any) -> None:
        seconds[0] += 1
        take_step(*args, **options)

    def read_later(reader: AsyncReader, values: Tensor, use: Any) -> None:
        reader.finish()
        reader._pending.append((values.clone(), None, use))

    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    monkeypatch.setattr(train_module, "train_step", timed_step)
    if reads_later:
        monkeypatch.setattr(AsyncReader, "read", read_later)
    settings = Settings(**TINY | {"log_every": 2, "checkpoint_every": 0.5, "run_dir": tmp_path / "run"})
    run = fit(settings)
    speeds = [line["images_per_second"] for line in run.metrics if "images_per_second" in line]
    assert speeds == pytest.approx([settings.batch_size] * len(speeds))
    assert len(speeds) == run.summary["step"] / 2
    assert run.summary["train_seconds"] == run.summary["step"]
