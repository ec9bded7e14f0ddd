"""Cost of fault tolerance on a CPU: `python -m benchmarks.safety`. Two processes, one epoch of `resnet9`, batch 512.

Measures one step, and the parts that only serve fault tolerance: the synchronisation of stop signals and the check of
loss and gradient after every step, and the checkpoint after every epoch. The time of the epoch, 97 steps, is calculated
from these: a whole one takes a CPU a quarter of an hour.
"""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.utils import get_total_norm

from benchmarks.machine import describe_machine
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.runs import checkpoint
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import python_command
from cifar10_accel.training.accelerator import make_accelerator, run_on_main
from cifar10_accel.training.preemption import PreemptionHandler
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import build_state
from cifar10_accel.training.step import require_finite, train_step

STEPS_PER_EPOCH = 50_000 // 512


@click.command()
def main() -> None:
    """Measure the share of an epoch that fault tolerance takes, with two processes."""
    if "WORLD_SIZE" not in os.environ:
        subprocess.run(python_command(["-m", "benchmarks.safety"], num_processes=2), check=True)
    else:
        measure()


def measure() -> None:
    """Print the parts and their share of an epoch."""
    settings = Settings(recipe="resnet9", dataset="synthetic", synthetic_size=2048)
    accelerator = make_accelerator(settings)
    setup = RunSetup(accelerator, settings, load_dataset(settings, seed=0))
    state = build_state(setup)
    batches = setup.loader.batches(0, 5)
    step = seconds(4, lambda: train_step(state, next(batches), lr=0.01))

    gradients = [torch.randn_like(parameter) for parameter in state.model.parameters()]
    signal = PreemptionHandler(accelerator)
    sync = seconds(200, lambda: signal.received(1))
    check = seconds(50, lambda: require_finite(accelerator.reduce(get_total_norm(gradients)), "the gradient"))
    with tempfile.TemporaryDirectory() as folder:

        def save() -> None:
            state.step += 1
            captured = state.capture()
            run_on_main(accelerator, lambda: checkpoint.save(Path(folder), captured, keep=2))

        saved = seconds(4, save)
    epoch = STEPS_PER_EPOCH * step
    accelerator.print(describe_machine())
    accelerator.print(f"{accelerator.num_processes} processes, {torch.get_num_threads()} thread(s) each")
    accelerator.print("\n| part | ms each | times per epoch | share of the epoch |\n|---|---:|---:|---:|")
    for name, each, times in (
        ("step", step, STEPS_PER_EPOCH),
        ("synchronisation of stop signals", sync, STEPS_PER_EPOCH),
        ("check of loss and gradient", check, STEPS_PER_EPOCH),
        ("checkpoint", saved, 1),
    ):
        accelerator.print(f"| {name} | {each * 1e3:,.1f} | {times} | {each * times / epoch:.3%} |")
    share = (STEPS_PER_EPOCH * (sync + check) + saved) / epoch
    accelerator.print(f"\nfault tolerance in total: {share:.2%} of the epoch")


def seconds(rounds: int, call: Callable[[], Any]) -> float:
    """Return the median wall time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
