"""Scaling of the speed with threads and processes: `python -m benchmarks.scaling`. The global batch stays the same.

Every layout is a launch of its own, under torchrun if it has several processes: on a CPU one process with one thread,
two with one thread each, one with two threads; on GPUs one process for each of 1..N of them. Only `train_step` is
timed, on one global batch of synthetic images that is already augmented and on the device. Not measured: making
batches, evaluation, checkpoints, the start and the first steps. Layouts take turns; figures are medians over rounds.
Needs no data.
"""

import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

import click
import torch

from benchmarks.machine import describe_machine
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import python_command, settings_to_flags
from cifar10_accel.training.accelerator import launch_info, make_accelerator
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import build_state
from cifar10_accel.training.step import train_step

WARM_STEPS = 3  # the first ones choose kernels and fill caches
LR = 1e-6  # the model is discarded

Layout = tuple[int, int]  # processes, threads of each


@click.command()
@click.option(
    "--recipe", type=click.Choice(recipe_names()), default="resnet9", show_default=True, help="recipe to train"
)
@click.option("--width", type=click.IntRange(min=4), help="of its model  [default: 16; on GPUs the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=2), help="global  [default: 128; on GPUs the recipe's]")
@click.option("--steps", type=click.IntRange(min=1), help="measured steps per launch  [default: 20; on GPUs 200]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="launches of each layout")
@click.option("--threads", type=click.IntRange(min=1), default=1, hidden=True)
@click.option("--measure", "is_launched", is_flag=True, hidden=True)
def main(rounds: int, threads: int, is_launched: bool, **given: Any) -> None:
    """Measure images per second for one process, several processes and several threads."""
    given |= {name: value for name, value in _usual().items() if given[name] is None}
    if is_launched:
        measure(threads=threads, **given)
        return
    found: dict[Layout, list[dict[str, Any]]] = {layout: [] for layout in layouts()}
    for _ in range(rounds):
        for layout, measured in found.items():
            measured.append(launch(layout, given))
    print(describe_machine("accelerate"))
    print_table(found, given)


def layouts() -> list[Layout]:
    """Return the launches to compare; ratios refer to the first one."""
    if torch.cuda.is_available():
        return [(count, 1) for count in range(1, torch.cuda.device_count() + 1)]
    return [(1, 1), (2, 1), (1, 2)]


def launch(layout: Layout, given: dict[str, Any]) -> dict[str, Any]:
    """Launch processes of this program and return their measurement; exit if they fail."""
    num_processes, threads = layout
    flags = settings_to_flags(
        {name: value for name, value in given.items() if value is not None} | {"threads": threads}
    )
    command = python_command(["-m", "benchmarks.scaling", "--measure", *flags], num_processes=num_processes)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(*, steps: int, threads: int, **given: Any) -> None:
    """In the launched processes: print the images per second of all together, and the launch, as one JSON line."""
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**chosen, dataset="synthetic", num_threads=threads)
    settings = settings.model_copy(update={"synthetic_size": max(100, settings.batch_size)})
    accelerator = make_accelerator(settings)
    setup = RunSetup(accelerator, settings, load_dataset(settings, seed=0))
    state = build_state(setup)
    batches = next(setup.loader.batches(0, 1))
    for step in range(WARM_STEPS + steps):
        if step == WARM_STEPS:
            start = _now(accelerator.device)
        train_step(state, batches, lr=LR)
    seconds = _now(accelerator.device) - start
    speed = {"images_per_second": steps * settings.batch_size / seconds, "batch_size": settings.batch_size}
    accelerator.print(json.dumps(speed | {"width": settings.width} | launch_info(accelerator)))


def print_table(found: dict[Layout, list[dict[str, Any]]], given: dict[str, Any]) -> None:
    """Print a row for each layout; ratios refer to the first one."""
    one = next(iter(found.values()))[0]
    title = f"{given['recipe']}, width {one['width']}, batch {one['batch_size']}, {one['precision']}"
    print(f"\n| {title} | images/s | ratio |\n|---|---:|---:|")
    speeds = {layout: median(each["images_per_second"] for each in measured) for layout, measured in found.items()}
    for layout, measured in found.items():
        kind = f"process(es) on {one['device']}" if torch.cuda.is_available() else "process(es)"
        name = f"{measured[0]['processes']} {kind}, {measured[0]['threads']} thread(s) each"
        print(f"| {name} | {speeds[layout]:,.0f} | {speeds[layout] / speeds[next(iter(found))]:.2f} |")


def _usual() -> dict[str, Any]:
    if torch.cuda.is_available():
        return {"width": None, "batch_size": None, "steps": 200}
    return {"width": 16, "batch_size": 128, "steps": 20}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
