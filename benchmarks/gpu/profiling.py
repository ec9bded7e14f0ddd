"""The piece `profile`: where the time of a training step goes.

The steps are those of `train.py` with the recorder of the training dynamics, on random images, without checkpoints,
metrics and evaluations (the piece `fit` has these). A row's `busy` is the share of the wall time in which the GPU runs
kernels.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import click
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.phases import Part, phase_milliseconds
from benchmarks.gpu.session import IMAGES, TINY_IMAGES, Session, noise, now, read_json, release_memory, write_json
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.loader import Batch
from cifar10_accel.settings import Settings
from cifar10_accel.training import step
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.dynamics_recorder import DynamicsRecorder
from cifar10_accel.training.evaluation import evaluate_split
from cifar10_accel.training.optimization.lr_schedule import make_schedule
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import build_state
from cifar10_accel.training.step import train_step

# name in the table: recipe and settings
PROFILED: dict[str, tuple[str, dict[str, Any]]] = {
    "speed94": ("speed94", {}),
    "speed94-no-graph": ("speed94", {"cuda_graph": False}),
    "resnet9": ("resnet9", {}),
    "resnet9-compiled": ("resnet9", {"compile": True}),
    "accuracy96": ("accuracy96", {}),
}
GROUP = 8  # steps of a measurement: those of speed94 whose images are augmented together on a GPU
NUM_KERNELS = 10


class Trainer:
    """A model in training, whose steps can be made one by one.

    Args:
        settings: Of the training.
        dataset: Its images.
    """

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        self.setup = RunSetup(make_accelerator(settings), settings, dataset)
        self.state = build_state(self.setup)
        classes = len(dataset.class_names)
        self.state.recorder = DynamicsRecorder(self.setup.accelerator, dataset.train.labels, num_classes=classes)
        self.schedule = make_schedule(settings, steps_per_epoch=self.setup.plan.steps_per_epoch)
        self.batches: Iterator[list[Batch]] = self.setup.loader.batches(0, self.schedule.total_steps)

    def steps(self, number: int) -> None:
        """Take some steps as `train.py` does; after the last step of the schedule its batches begin again."""
        for _ in range(number):
            if self.state.step and self.state.step % self.schedule.total_steps == 0:
                self.batches = self.setup.loader.batches(0, self.schedule.total_steps)
            batches = self.next_batches()
            train_step(self.state, batches, lr=self.schedule.lr_at(self.state.step % self.schedule.total_steps))
            if self.state.step % self.setup.plan.steps_per_epoch == 0 and self.state.recorder is not None:
                self.state.recorder.end_epoch()

    def next_batches(self) -> list[Batch]:
        """Return the micro-batches of the next step."""
        return next(self.batches)

    def parts(self) -> list[Part]:
        """Return the parts of a step whose time is measured."""
        state = self.state
        found: list[Part] = [
            (self, "next_batches", "data"),
            (step, "forward", "forward, loss, recorder"),
            (state.recorder, "record", "of which recorder"),
            (state.accelerator, "backward", "backward"),
            (state.optimizer, "step", "optimizer"),
        ]
        if state.average is not None:
            found.append((state.average, "update_parameters", "averaged weights"))
        return found

    def evaluate(self) -> float:
        """Evaluate on the test images as a training does at its end; return the seconds."""
        settings, start = self.setup.settings, now()
        evaluate_split(
            self.setup.accelerator,
            self.state.evaluated_model,
            self.setup.dataset.test,
            batch_size=settings.eval_batch_size,
            tta=settings.tta,
        )
        return now() - start


def profile_recipes(session: Session) -> None:
    """Profile the recipes that are missing, until the time is over; print the tables of all."""
    folder = session.folder("profile")
    dataset = noise(*(TINY_IMAGES if session.is_tiny else IMAGES))
    found: dict[str, dict[str, Any]] = {}
    for name, (recipe, changes) in PROFILED.items():
        path = folder / f"{name}-{session.half}.json"
        row = read_json(path)
        if row.get("conditions") != session.conditions and session.has_time(session.warm_up_seconds):
            release_memory()
            settings = session.settings(recipe, **({} if session.is_tiny else changes))
            row = measure(session, settings, dataset, trace=str(path.with_suffix(".trace.json.gz")))
            write_json(path, row)
        if row.get("conditions") == session.conditions:
            found[name] = row
    for name, row in found.items():
        print_details(name, row)
    print_summary(session, found)
    if missing := [name for name in PROFILED if name not in found]:
        click.echo(f"missing: {', '.join(missing)}; the same command continues")


def measure(session: Session, settings: Settings, dataset: Dataset, *, trace: str) -> dict[str, Any]:
    """Return the measurements of one recipe, and write a trace of two steps for Chrome or Perfetto."""
    num_steps = GROUP if session.is_tiny else 12 * GROUP
    start = now()
    trainer = Trainer(settings, dataset)
    built = now()
    trainer.steps(2)
    compiled = now()
    trainer.steps(GROUP if session.is_tiny else 4 * GROUP)
    begin = now()
    trainer.steps(num_steps)
    wall = (now() - begin) / num_steps
    with patch.object(trainer.state, "cuda_graphs", None):  # within a graph the parts are not seen
        phases = phase_milliseconds(trainer.parts(), trainer.steps, steps=2 * GROUP)
    kernels, busy = _kernels(trainer, trace=trace)
    first = trainer.evaluate()
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "conditions": session.conditions,
        "batch_size": settings.batch_size,
        "precision": settings.precision,
        "is_compiled": settings.compile,
        "has_graph": trainer.state.cuda_graphs is not None,
        "build_seconds": built - start,
        "compile_seconds": compiled - built,
        "wall": wall,
        "host": _host_seconds(trainer),
        "busy": busy,
        "launches": sum(count for _, _, count in kernels),
        "phases": phases,
        "kernels": kernels[:NUM_KERNELS],
        "evaluation": {"tta": settings.tta, "first_seconds": first, "seconds": trainer.evaluate()},
        "memory_gib": memory,
    }


def _host_seconds(trainer: Trainer) -> float:
    """Return the seconds until a step is launched on an idle device, mean over two groups; on a CPU it is the step."""
    seconds = []
    for _ in range(2 * GROUP):
        start = now()
        trainer.steps(1)
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds)


def _kernels(trainer: Trainer, *, trace: str) -> tuple[list[tuple[str, float, float]], float]:
    """Return name, milliseconds and launches a step of the kernels, the longest first, and their seconds a step.

    On a CPU they are PyTorch's operations.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        trainer.steps(GROUP)
        now()
    found, events = [], profiler.key_averages()
    for event in events:
        # The GPU's events include the span of each annotation of the host, such as an optimizer's step, with its gaps.
        if on_gpu and (event.device_type == DeviceType.CPU or event.is_user_annotation):
            continue
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micros > 0:
            found.append((str(event.key), micros / GROUP / 1e3, event.count / GROUP))
    found.sort(key=lambda row: -row[1])
    with profile(activities=activities) as profiler:
        trainer.steps(2)
        now()
    profiler.export_chrome_trace(trace)
    return found, sum(milliseconds for _, milliseconds, _ in found) / 1e3


def print_details(name: str, row: dict[str, Any]) -> None:
    """Print the phases and the longest kernels of one recipe."""
    click.echo(
        f"\n{name}: build {row['build_seconds']:.2f} s, first two steps {row['compile_seconds']:.1f} s, evaluation "
        f"({row['evaluation']['tta']}) {1e3 * row['evaluation']['seconds']:.1f} ms, the first "
        f"{row['evaluation']['first_seconds']:.2f} s; peak memory {row['memory_gib']:.1f} GiB"
    )
    click.echo(
        "ms a step by phase, without a CUDA graph: "
        + ", ".join(f"{phase} {ms:.3f}" for phase, ms in row["phases"].items())
    )
    click.echo("| kernel | ms a step | launches |\n|---|---:|---:|")
    for kernel, milliseconds, launches in row["kernels"]:
        click.echo(f"| {kernel[:90].replace('|', ' ')} | {milliseconds:.3f} | {launches:.1f} |")


def print_summary(session: Session, rows: dict[str, dict[str, Any]]) -> None:
    """Print the table of all recipes."""
    click.echo(f"\n| {session.device}, step of | batch | wall ms | images/s | host ms | kernel ms | launches | busy |")
    click.echo("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        cells = [
            f"{name}, {row['precision']}{', compiled' * row['is_compiled']}{', CUDA graph' * row['has_graph']}",
            f"{row['batch_size']:,}",
            f"{1e3 * row['wall']:.3f}",
            f"{row['batch_size'] / row['wall']:,.0f}",
            f"{1e3 * row['host']:.3f}",
            f"{1e3 * row['busy']:.3f}",
            f"{row['launches']:.0f}",
            f"{row['busy'] / row['wall']:.0%}",
        ]
        click.echo(f"| {' | '.join(cells)} |")
