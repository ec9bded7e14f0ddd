"""What a training loop costs beside the computation: `python -m benchmarks.loop`. All contestants in one run.

The same net, from the same weights, on the same batches that are already on the device, goes through
- a bare PyTorch loop: set the LR, forward, cross-entropy, backward, SGD step, zero_grad
- this project's loop: the calls of section 4 of `train.py`, with the right answers counted, a line to
  metrics.jsonl every ten updates, the agreement on stop signals and, on a CPU, the look at loss and gradient
- the Trainer of `lightning` in its barebones mode, which has no logger, checkpoint, progress bar or summary
- the Trainer of `transformers` with logging, saving, reporting, clipping and its NaN filter off
All make the same updates: SGD with Nesterov momentum and weight decay, fp32, and the LR of every update from the
same one-cycle, which reaches the Trainers through `LambdaLR`. Not inside: making batches, evaluation, checkpoints,
the start of a run and its first updates. The process has the threads, kernels and allocator that this project
chooses. Contestants take turns, a round each; figures are medians over rounds, ratios and differences medians of
those within a round. Needs no data. A contestant that is not installed says so.
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
from cifar10_accel.data.batches import Batch
from cifar10_accel.launch import make_accelerator
from cifar10_accel.models import build
from cifar10_accel.settings import Settings
from cifar10_accel.train import one_cycle

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

Rounds = dict[str, list[float]]  # seconds per update, by contestant


class Empty(nn.Module):
    """A net that computes nothing: its logits are its one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        """(B, ...) -> (B, 10)."""
        return self.logits.expand(len(images), -1)


def make_task(net: nn.Module, settings: Settings, *, steps: int) -> Task:
    """The task of training this net on noise with random labels, on the device that Accelerate chooses."""
    device, size = make_accelerator(settings).device, settings.batch_size
    batches = []
    for start in range(0, NUM_BATCHES * size, size):
        images = torch.randn(size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (size,), device=device)
        batches.append(Batch(images, labels, torch.arange(start, start + size, device=device), labels, 1.0))
    schedule = one_cycle(settings, steps_per_epoch=NUM_IMAGES // size)
    net = net.to(device).to(memory_format=torch.channels_last)
    return Task(net=net, batches=batches, settings=settings, schedule=schedule, steps=steps)


def measure(task: Task, *, rounds: int) -> Rounds:
    """Seconds per update of every contestant in every round; no rounds for one that is not installed."""
    seconds: Rounds = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, contestant in CONTESTANTS.items():
            if name in PACKAGES and find_spec(name) is None:
                continue
            gc.collect()  # what the one before has left is not this one's to clear
            seconds[name].append(contestant(task, copy.deepcopy(task.net)) / task.steps)
    return seconds


def print_speed(title: str, seconds: Rounds, *, batch_size: int) -> None:
    """Images per second, and how many times those of bare PyTorch."""
    print(f"\n| {title} | images/s | ratio to {BARE} |\n|---|---:|---:|")
    for name, values in seconds.items():
        if not values:
            print(f"| {name} | not installed | |")
            continue
        ratio = median(bare / value for bare, value in zip(seconds[BARE], values, strict=True))
        print(f"| {name} | {batch_size / median(values):,.0f} | {ratio:.3f} |")


def print_overhead(title: str, seconds: Rounds) -> None:
    """Microseconds per update, and how many more than bare PyTorch."""
    print(f"\n| {title} | us an update | more than {BARE} |\n|---|---:|---:|")
    for name, values in seconds.items():
        if not values:
            print(f"| {name} | not installed | |")
            continue
        more = median(value - bare for bare, value in zip(seconds[BARE], values, strict=True))
        print(f"| {name} | {1e6 * median(values):,.0f} | {1e6 * more:,.0f} |")


@click.command()
@click.option("--width", type=click.IntRange(min=4), help="of custom_resnet  [default: 16; on a GPU 64]")
@click.option("--batch-size", type=click.IntRange(min=2), help="of custom_resnet  [default: 128; on a GPU 512]")
@click.option("--steps", type=click.IntRange(min=1), help="updates a round, custom_resnet  [default: 20; on a GPU 200]")
@click.option(
    "--empty-steps", type=click.IntRange(min=1), default=1000, show_default=True, help="updates a round, empty model"
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
        width=width or usual_width, batch_size=batch_size or usual_size, num_threads=threads,
        dataset="synthetic", tracker="none", precision="no",
    )  # fmt: skip
    resnet = make_task(build(settings, num_classes=10), settings, steps=steps or usual_steps)
    empty_settings = settings.model_copy(update={"batch_size": EMPTY_BATCH_SIZE})
    resnet_seconds = measure(resnet, rounds=rounds)
    empty_seconds = measure(make_task(Empty(), empty_settings, steps=empty_steps), rounds=rounds)
    print(describe_machine("accelerate", *PACKAGES))
    title = f"custom_resnet, width {settings.width}, batch {settings.batch_size}, {torch.get_num_threads()} thread(s)"
    print_speed(title, resnet_seconds, batch_size=settings.batch_size)
    print_overhead("empty model", empty_seconds)


if __name__ == "__main__":
    main()
