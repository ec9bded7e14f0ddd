"""What safety costs on a CPU: `python -m benchmarks.safety`. Two processes, one epoch of `custom_resnet`, batch 512.

Measures one update, and what each adds that is there only to survive: the agreement on stop signals and the
look at loss and gradient after every update, the checkpoint after every epoch. The epoch itself, 97 updates, is
calculated from its parts: whole, it takes a CPU a quarter of an hour.
"""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from benchmarks.machine import describe_machine
from cifar10_accel import checkpoint
from cifar10_accel.data.batches import BatchPlan, training_batches
from cifar10_accel.data.cifar10 import load
from cifar10_accel.engine import require_finite, train_step
from cifar10_accel.interrupt import StopSignal
from cifar10_accel.launch import make_accelerator, on_main
from cifar10_accel.processes import python_command
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import build_state

STEPS_PER_EPOCH = 50_000 // 512


def main() -> None:
    """Starts two processes of this program, which measure themselves."""
    if "WORLD_SIZE" not in os.environ:
        subprocess.run(python_command(["-m", "benchmarks.safety"], num_processes=2), check=True)
    else:
        measure()


def measure() -> None:
    """Prints the parts and their share of an epoch."""
    settings = Settings(recipe="resnet24", dataset="synthetic", synthetic_size=2048)
    accelerator = make_accelerator(settings)
    dataset = load(settings, seed=0)
    state = build_state(settings, accelerator, dataset)
    plan = BatchPlan.of(settings, accelerator, num_images=len(dataset.train))
    batches = training_batches(
        dataset.train, plan, settings, start_step=0, stop_step=5, device=accelerator.device, dtype=torch.float32
    )
    update = seconds(4, lambda: train_step(
        accelerator, state.model, state.optimizer, next(batches), lr=0.01, settings=settings, average=None
    ))  # fmt: skip

    gradients = [torch.randn_like(parameter) for parameter in state.net.parameters()]
    signal = StopSignal(accelerator)
    agree = seconds(200, lambda: signal.agreed(1))
    look = seconds(50, lambda: require_finite(accelerator.reduce(get_total_norm(gradients)), "the gradient"))
    with tempfile.TemporaryDirectory() as folder:

        def save() -> None:
            state.step += 1
            captured = state.capture()
            on_main(accelerator, lambda: checkpoint.save(Path(folder), captured, keep=2))

        saved = seconds(4, save)
    epoch = STEPS_PER_EPOCH * update
    accelerator.print(describe_machine())
    accelerator.print(f"{accelerator.num_processes} processes, {torch.get_num_threads()} thread(s) each")
    accelerator.print("\n| part | ms each | times an epoch | share of the epoch |\n|---|---:|---:|---:|")
    for name, each, times in (
        ("update", update, STEPS_PER_EPOCH), ("agreement on stop signals", agree, STEPS_PER_EPOCH),
        ("look at loss and gradient", look, STEPS_PER_EPOCH), ("checkpoint", saved, 1),
    ):  # fmt: skip
        accelerator.print(f"| {name} | {each * 1e3:,.1f} | {times} | {each * times / epoch:.3%} |")
    share = (STEPS_PER_EPOCH * (agree + look) + saved) / epoch
    accelerator.print(f"\nsafety in all: {share:.2%} of the epoch")


def seconds(rounds: int, call: Callable[[], Any]) -> float:
    """Median wall time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
