"""Overhead of training loops: `python -m benchmarks.loop`. All contestants in one run.

The same model is trained from the same weights on the same batches, which are already on the device, by
- a bare PyTorch loop: set the LR, forward, cross-entropy, backward, SGD step, zero_grad
- this project's loop: the calls of section 4 of `train.py`, which also count correct predictions, record loss and
  prediction of each image, write a line to metrics.jsonl every ten steps, synchronise stop signals and, on a CPU,
  check that loss and gradient are finite; on a GPU it launches each step as a CUDA graph, its default
- the Trainer of `lightning` in its barebones mode, which has no logger, checkpoint, progress bar or summary
- the Trainer of `transformers` with logging, saving, reporting, clipping and its NaN filter off
All take the same steps: SGD with Nesterov momentum and weight decay, fp32, and the LR of every step from the same
one-cycle schedule, which the Trainers get as `LambdaLR`. Not measured: making batches, evaluation, checkpoints, the
start of a run and its first steps. The process has the threads, kernels and allocator that this project chooses.
Contestants take turns, one round each. Figures are medians over rounds; ratios and differences are taken within a
round. Needs no data. Contestants that are not installed are marked.
"""

import copy
import gc
import os
import warnings
from importlib.util import find_spec
from statistics import median

import click
import torch
from torch import Tensor, nn

from benchmarks.contestants import (
    NUM_IMAGES,
    Contestant,
    Task,
    bare_pytorch,
    lightning_trainer,
    this_project,
    transformers_trainer,
)
from benchmarks.machine import describe_machine
from cifar10_accel.data.loader import Batch
from cifar10_accel.models.registry import build_model
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.optimization.lr_schedule import OneCycle

CONTESTANTS: dict[str, Contestant] = {
    "bare PyTorch": bare_pytorch,
    "this project": this_project,
    "lightning": lightning_trainer,
    "transformers": transformers_trainer,
}
PACKAGES = ("lightning", "transformers")
BARE = "bare PyTorch"
NUM_BATCHES = 4  # in memory, used in turn
EMPTY_BATCH_SIZE = 8

Rounds = dict[str, list[float]]  # seconds per step, by contestant


class Empty(nn.Module):
    """A model that computes nothing: its logits are its one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        """(B, ...) -> (B, 10)."""
        return self.logits.expand(len(images), -1)


def make_task(model: nn.Module, settings: Settings, *, steps: int) -> Task:
    """Return the task to train this model on noise with random labels, on the device that Accelerate chooses."""
    device, size = make_accelerator(settings).device, settings.batch_size
    batches = []
    for start in range(0, NUM_BATCHES * size, size):
        images = torch.randn(size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (size,), device=device)
        batches.append(Batch(images, labels, torch.arange(start, start + size, device=device), labels, 1.0))
    schedule = OneCycle.of(settings, steps_per_epoch=NUM_IMAGES // size)
    model = model.to(device).to(memory_format=torch.channels_last)
    return Task(model=model, batches=batches, settings=settings, schedule=schedule, steps=steps)


def measure(task: Task, *, rounds: int) -> Rounds:
    """Return seconds per step of every contestant in every round; no rounds for one that is not installed."""
    seconds: Rounds = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, contestant in CONTESTANTS.items():
            if name in PACKAGES and find_spec(name) is None:
                continue
            gc.collect()  # so that this contestant does not pay for garbage of the previous one
            seconds[name].append(contestant(task, copy.deepcopy(task.model)) / task.steps)
    return seconds


def print_speed(title: str, seconds: Rounds, *, batch_size: int) -> None:
    """Print images per second, and the ratio to bare PyTorch."""
    print(f"\n| {title} | images/s | ratio to {BARE} |\n|---|---:|---:|")
    for name, values in seconds.items():
        if not values:
            print(f"| {name} | not installed | |")
            continue
        ratio = median(bare / value for bare, value in zip(seconds[BARE], values, strict=True))
        print(f"| {name} | {batch_size / median(values):,.0f} | {ratio:.3f} |")


def print_overhead(title: str, seconds: Rounds) -> None:
    """Print microseconds per step, and the difference to bare PyTorch."""
    print(f"\n| {title} | us per step | more than {BARE} |\n|---|---:|---:|")
    for name, values in seconds.items():
        if not values:
            print(f"| {name} | not installed | |")
            continue
        more = median(value - bare for bare, value in zip(seconds[BARE], values, strict=True))
        print(f"| {name} | {1e6 * median(values):,.0f} | {1e6 * more:,.0f} |")


@click.command()
@click.option("--width", type=click.IntRange(min=4), help="of resnet9  [default: 16; on a GPU 64]")
@click.option("--batch-size", type=click.IntRange(min=2), help="of resnet9  [default: 128; on a GPU 512]")
@click.option("--steps", type=click.IntRange(min=1), help="steps per round, resnet9  [default: 20; on a GPU 200]")
@click.option(
    "--empty-steps", type=click.IntRange(min=1), default=1000, show_default=True, help="steps per round, empty model"
)
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="turns of each contestant")
@click.option("--threads", type=click.IntRange(min=1), help="on a CPU  [default: its cores]")
def main(
    width: int | None, batch_size: int | None, steps: int | None, empty_steps: int, rounds: int, threads: int | None
) -> None:
    """Compare this project's training loop with bare PyTorch and two Trainers."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one Trainer would use them all
    warnings.filterwarnings("ignore", module="lightning")
    usual_width, usual_size, usual_steps = (64, 512, 200) if torch.cuda.is_available() else (16, 128, 20)
    settings = Settings(
        width=width or usual_width,
        batch_size=batch_size or usual_size,
        num_threads=threads,
        dataset="synthetic",
        tracker="none",
        precision="no",
    )
    resnet = make_task(build_model(settings, num_classes=10), settings, steps=steps or usual_steps)
    empty_settings = settings.model_copy(update={"batch_size": EMPTY_BATCH_SIZE})
    resnet_seconds = measure(resnet, rounds=rounds)
    empty_seconds = measure(make_task(Empty(), empty_settings, steps=empty_steps), rounds=rounds)
    print(describe_machine("accelerate", *PACKAGES))
    title = f"resnet9, width {settings.width}, batch {settings.batch_size}, {torch.get_num_threads()} thread(s)"
    print_speed(title, resnet_seconds, batch_size=settings.batch_size)
    print_overhead("empty model", empty_seconds)


if __name__ == "__main__":
    main()
