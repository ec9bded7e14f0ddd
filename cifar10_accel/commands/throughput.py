"""Speed of the data loader and of training steps, measured separately for a second or two each."""

import resource
import sys
import time
from dataclasses import dataclass, replace

import torch

from cifar10_accel.data.loader import Batch
from cifar10_accel.training.accelerator import run_on_main
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import TrainingState
from cifar10_accel.training.step import train_step

MEASURE_SECONDS = 1.5
WARM_UP_STEPS = 2  # the first ones choose kernels and fill caches
LR = 1e-6  # the model is thrown away; only its time matters


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Seconds per step of making its batches and of computing it, on the slowest rank; and memory."""

    loader_seconds: float
    model_seconds: float
    in_workers: bool  # batches are made in loader workers, while the model computes
    memory_bytes: int  # peak resident memory of this process, without loader workers
    gpu_bytes: int  # peak allocated on this process's GPU; 0 on a CPU

    @property
    def step_seconds(self) -> float:
        """Seconds per step of both together."""
        if self.in_workers:
            return max(self.loader_seconds, self.model_seconds)
        return self.loader_seconds + self.model_seconds


def measure(state: TrainingState, setup: RunSetup) -> Throughput:
    """Measure on this machine as it is now. All ranks must call this; all take the same number of steps.

    The weights and the optimizer's state are changed.
    """
    accelerator = setup.accelerator
    loader_seconds, batches = _time_loader(setup)
    _time_steps(state, batches, WARM_UP_STEPS)
    one = _time_steps(state, batches, 1)
    count = run_on_main(accelerator, lambda: max(1, round(MEASURE_SECONDS / one)))
    model_seconds = _time_steps(state, batches, count) / count
    slowest = accelerator.gather(torch.tensor([[loader_seconds, model_seconds]], device=accelerator.device))
    loader_seconds, model_seconds = slowest.amax(dim=0).tolist()
    return Throughput(
        loader_seconds=loader_seconds,
        model_seconds=model_seconds,
        in_workers=setup.loader.uses_workers,
        memory_bytes=_peak_memory(),
        gpu_bytes=torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else 0,
    )


def _time_loader(setup: RunSetup) -> tuple[float, list[Batch]]:
    """Return the seconds per step of making batches, without the start of workers, and the last batches made."""
    device = setup.accelerator.device
    full_size = setup.with_plan(replace(setup.plan, low_res_epochs=0))  # the largest images of a training
    steps = full_size.loader.batches(0, 10**6)
    batches = next(steps)
    _wait(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < MEASURE_SECONDS:
        batches = next(steps)
        count += 1
        _wait(device)
    return (time.perf_counter() - start) / count, batches


def _time_steps(state: TrainingState, batches: list[Batch], count: int) -> float:
    """Return the seconds that `count` steps on the same batches take."""
    _wait(state.accelerator.device)
    start = time.perf_counter()
    for _ in range(count):
        train_step(state, batches, lr=LR)
    _wait(state.accelerator.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
