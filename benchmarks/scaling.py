"""How speed grows with threads and processes: `python -m benchmarks.scaling`. The global batch is the same for all.

Every layout is a launch of its own, under torch's launcher if it has several processes: on a CPU one process with
one thread, two with one thread each, one with two threads; on GPUs one process for each of 1..N of them. What is
timed is `train_step` alone, on one global batch of synthetic images that is already augmented and on the device.
Not inside: making batches, evaluation, checkpoints, the start and the first updates. Layouts take turns; figures
are medians over rounds. Needs no data.
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
from cifar10_accel.data.batches import BatchPlan, training_batches
from cifar10_accel.data.cifar10 import load
from cifar10_accel.engine import train_step
from cifar10_accel.launch import launched_as, make_accelerator, training_dtype
from cifar10_accel.processes import flags_of, python_command
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import build_state

WARM_STEPS = 3  # they choose kernels and fill caches
LR = 1e-6  # the net is thrown away; only its time matters

Layout = tuple[int, int]  # processes, threads of each


@click.command()
@click.option(
    "--recipe", type=click.Choice(recipe_names()), default="resnet24", show_default=True, help="what is trained"
)
@click.option("--width", type=click.IntRange(min=4), help="of its net  [default: 16; on GPUs the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=2), help="global  [default: 128; on GPUs the recipe's]")
@click.option("--steps", type=click.IntRange(min=1), help="measured updates a launch  [default: 20; on GPUs 200]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="launches of each layout")
@click.option("--threads", type=click.IntRange(min=1), default=1, hidden=True)
@click.option("--measure", "is_child", is_flag=True, hidden=True)
def main(rounds: int, threads: int, is_child: bool, **given: Any) -> None:
    """Measure images per second for one process, several processes and several threads."""
    given |= {name: value for name, value in _usual().items() if given[name] is None}
    if is_child:
        measure(threads=threads, **given)
        return
    found: dict[Layout, list[dict[str, Any]]] = {layout: [] for layout in layouts()}
    for _ in range(rounds):
        for layout, measured in found.items():
            measured.append(launch(layout, given))
    print(describe_machine("accelerate"))
    print_table(found, given)


def layouts() -> list[Layout]:
    """The launches that are compared, the one that ratios refer to first."""
    if torch.cuda.is_available():
        return [(count, 1) for count in range(1, torch.cuda.device_count() + 1)]
    return [(1, 1), (2, 1), (1, 2)]


def launch(layout: Layout, given: dict[str, Any]) -> dict[str, Any]:
    """What processes of this program, launched so, have measured; what goes wrong there ends this one too."""
    num_processes, threads = layout
    flags = flags_of({name: value for name, value in given.items() if value is not None} | {"threads": threads})
    command = python_command(["-m", "benchmarks.scaling", "--measure", *flags], num_processes=num_processes)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(*, steps: int, threads: int, **given: Any) -> None:
    """In a launched process: prints, once, images per second of all processes together and how they were launched."""
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**chosen, dataset="synthetic", num_threads=threads)
    settings = settings.model_copy(update={"synthetic_size": max(100, settings.batch_size)})
    accelerator = make_accelerator(settings)
    dataset = load(settings, seed=0)
    state = build_state(settings, accelerator, dataset)
    plan = BatchPlan.of(settings, accelerator, num_images=len(dataset.train))
    batches = next(training_batches(
        dataset.train, plan, settings, start_step=0, stop_step=1,
        device=accelerator.device, dtype=training_dtype(accelerator),
    ))  # fmt: skip
    for step in range(WARM_STEPS + steps):
        if step == WARM_STEPS:
            start = _now(accelerator.device)
        train_step(accelerator, state.model, state.optimizer, batches, lr=LR, settings=settings, average=state.average)
    seconds = _now(accelerator.device) - start
    speed = {"images_per_second": steps * settings.batch_size / seconds, "batch_size": settings.batch_size}
    accelerator.print(json.dumps(speed | {"width": settings.width} | launched_as(accelerator)))


def print_table(found: dict[Layout, list[dict[str, Any]]], given: dict[str, Any]) -> None:
    """A row for each layout; ratios are to the first."""
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
