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


class FakeGpu:
    """The time of a host and of a GPU that computes later, in seconds."""

    def __init__(self, *, host_step: float, gpu_step: float) -> None:
        self.host = 0.0
        self._free = 0.0  # the GPU has done its work
        self._steps = (host_step, gpu_step)

    def take_step(self) -> None:
        host_step, gpu_step = self._steps
        self.host += host_step
        self._free = max(self._free, self.host) + gpu_step

    def synchronize(self) -> None:
        self.host = max(self.host, self._free)

    def event(self, enable_timing: bool = False) -> "FakeEvent":
        return FakeEvent(self)

    def record(self) -> float:
        """Return the time at which the GPU gets to an event."""
        return max(self._free, self.host)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def record(self) -> None:
        self.seconds = self._gpu.record()

    def synchronize(self) -> None:
        self._gpu.host = max(self._gpu.host, self.seconds)

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert end.seconds <= self._gpu.host, "the event has not been reached"
        return (end.seconds - self.seconds) * 1000


@pytest.mark.parametrize(
    ("host_step", "gpu_step"), [(1.0, None), (1.0, 0.1), (0.1, 1.0)], ids=["no GPU", "slow host", "slow GPU"]
)
def test_every_line_has_the_speed_of_its_own_steps(
    host_step: float, gpu_step: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second; checkpoints and evaluations, before which all is read, take none."""
    gpu = FakeGpu(host_step=host_step, gpu_step=gpu_step or 0.0)
    take_step = train_module.train_step

    def timed_step(*args: Any, **options: Any) -> None:
        gpu.take_step()
        take_step(*args, **options)

    def read_later(reader: AsyncReader, values: Tensor, use: Any) -> None:
        reader.finish()
        event: Any = gpu.event()
        event.record()
        reader._pending.append((values.clone(), event, use))

    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: gpu.host))
    monkeypatch.setattr(train_module, "train_step", timed_step)
    if gpu_step is not None:
        cuda = SimpleNamespace(is_initialized=lambda: True, Event=gpu.event, synchronize=gpu.synchronize)
        monkeypatch.setattr(stopwatch, "torch", SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(AsyncReader, "read", read_later)
    changes = {"log_every": 4, "eval_every": 2, "checkpoint_every": 1.5, "run_dir": tmp_path / "run"}
    settings = Settings(**TINY | changes)
    run = fit(settings)
    lines = [line for line in run.metrics if "images_per_second" in line]
    steps_per_epoch = run.summary["step"] / settings.epochs
    assert steps_per_epoch % settings.log_every, "the last line of an epoch is about fewer steps"
    # To start the GPU, after a pause, takes the host's part of one step.
    assert [line["images_per_second"] for line in lines] == pytest.approx([settings.batch_size] * len(lines), rel=0.1)
    assert run.summary["train_seconds"] == pytest.approx(run.summary["step"], rel=0.1)
