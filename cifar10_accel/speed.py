"""How fast batches are made and how fast updates are, measured apart for a second or two each."""

import resource
import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cifar10_accel.data.batches import Batch, BatchPlan, choose_backend, training_batches
from cifar10_accel.data.cifar10 import Split
from cifar10_accel.engine import train_step
from cifar10_accel.launch import on_main, training_dtype
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import TrainingState

MEASURE_SECONDS = 1.5
WARM_UPDATES = 2  # the first ones choose kernels and fill caches
LR = 1e-6  # the net is thrown away; only its time matters


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds per update of making its batches and of computing it, for the slowest rank; and memory."""

    loader_seconds: float
    model_seconds: float
    in_workers: bool  # batches are made in loader workers, while the model computes
    memory_bytes: int  # peak resident memory of this process, without loader workers
    gpu_bytes: int  # peak allocated on this process's GPU; 0 on a CPU

    @property
    def update_seconds(self) -> float:
        """Seconds per update of both together."""
        if self.in_workers:
            return max(self.loader_seconds, self.model_seconds)
        return self.loader_seconds + self.model_seconds


def measure(state: TrainingState, train: Split, plan: BatchPlan, settings: Settings) -> Speed:
    """Measures on this machine as it is now. All ranks must call this; all make the same number of updates.

    The optimizer's state and the weights are changed.
    """
    loader_seconds, batches = _time_loader(state, train, plan, settings)
    _updates(state, batches, settings, WARM_UPDATES)
    one = _updates(state, batches, settings, 1)
    count = on_main(state.accelerator, lambda: max(1, round(MEASURE_SECONDS / one)))
    model_seconds = _updates(state, batches, settings, count) / count
    slowest = state.accelerator.gather(torch.tensor([[loader_seconds, model_seconds]], device=state.accelerator.device))
    loader_seconds, model_seconds = slowest.amax(dim=0).tolist()
    on_gpu = state.accelerator.device.type == "cuda"
    in_workers = settings.num_workers > 0 and choose_backend(settings) == "albumentations"
    return Speed(
        loader_seconds=loader_seconds, model_seconds=model_seconds, in_workers=in_workers, memory_bytes=_peak_memory(),
        gpu_bytes=torch.cuda.max_memory_allocated() if on_gpu else 0,
    )  # fmt: skip


def _time_loader(state: TrainingState, train: Split, plan: BatchPlan, settings: Settings) -> tuple[float, list[Batch]]:
    """Seconds per update of making batches, and the last ones made. The start of workers does not count."""
    device = state.accelerator.device
    dtype = training_dtype(state.accelerator)
    plan = replace(plan, low_res_epochs=0)  # the largest images that a training may have
    made = training_batches(train, plan, settings, start_step=0, stop_step=10**6, device=device, dtype=dtype)
    batches = next(made)
    _wait(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < MEASURE_SECONDS:
        batches = next(made)
        count += 1
        _wait(device)
    return (time.perf_counter() - start) / count, batches


def _updates(state: TrainingState, batches: list[Batch], settings: Settings, count: int) -> float:
    """Seconds that so many updates on the same batches take."""
    totals: list[Tensor] = []
    _wait(state.accelerator.device)
    start = time.perf_counter()
    for _ in range(count):
        totals.append(
            train_step(
                state.accelerator, state.model, state.optimizer, batches, lr=LR, settings=settings,
                average=state.average,
            )
        )  # fmt: skip
    _wait(state.accelerator.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
