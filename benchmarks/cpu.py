"""How close the training loop comes to what a CPU can compute: `python -m benchmarks.cpu --recipe cpu`.

Images/s of the real loop (batches made, update), the FLOP/s in that, and beside it the rate of a large matrix
product on the same threads, which convolutions can hardly exceed. Then where the time goes.
Takes a minute and needs no data: drawn images cost the same. They have full size, where a recipe begins with smaller.
"""

import os
import time
from collections import Counter
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe_machine
from cifar10_accel.data.batches import BatchPlan, training_batches
from cifar10_accel.data.cifar10 import load
from cifar10_accel.engine import train_step
from cifar10_accel.flags import WIDE, exits_with_one_line, settings_flags
from cifar10_accel.launch import make_accelerator, training_dtype
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import build_state

WARM_UPDATES = 3  # the first ones choose kernels and fill caches
PROFILED_UPDATES = 10
ROUNDS = 5  # loop and matrix products take turns, and the best of each counts: other load hits both
MATRIX = 2048  # rows and columns: large enough for the best rate
NUM_IMAGES = 4096
LR = 1e-6  # the net is thrown away
BATCHES = "batches made"
UPDATE = "whole update"
# What an operation is counted as, by the first of these words in its name or in that of what it is part of.
KINDS = {
    BATCHES: "making batches", "optimizer.step": "optimizer", "conv": "convolutions", "batch_norm": "norms",
    "batchnorm": "norms", "pool": "pooling", "elu": "activations", "silu": "activations", "linear": "last layer",
    "mmbackward": "last layer",
}  # fmt: skip
OTHER = "everything else"


@click.command(context_settings=WIDE)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10, show_default=True,
              help="of updates to measure")  # fmt: skip
@settings_flags
@exits_with_one_line
def main(seconds: float, **flags: Any) -> None:
    """Images/s and FLOP/s of the training loop on this CPU, against its matrix products."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "KINETO_LOG_LEVEL": "99"}  # no GPU, and no word about it
    drawn = {"dataset": "synthetic", "synthetic_size": NUM_IMAGES, "low_res_fraction": 0}
    settings = Settings(**{"recipe": "cpu"} | drawn | flags)
    loop = Loop(settings)
    flops_an_image = count_flops(settings) / settings.batch_size
    loop.run(WARM_UPDATES)
    rounds = [(loop.images_per_second(seconds / ROUNDS), matrix_product_rate()) for _ in range(ROUNDS)]
    rate, possible = map(max, zip(*rounds, strict=True))
    achieved = rate * flops_an_image
    click.echo(f"{describe_machine()}\n")
    click.echo(f"| {settings.recipe}: {settings.model}, width {settings.width}, batch {settings.batch_size}; "
               f"threads: {torch.get_num_threads()} | |\n|---|---:|")  # fmt: skip
    click.echo(f"| images/s of the loop | {rate:,.0f} |")
    click.echo(f"| GFLOP an image, forward and backward | {flops_an_image / 1e9:.3f} |")
    click.echo(f"| GFLOP/s of the loop | {achieved / 1e9:.1f} |")
    click.echo(f"| GFLOP/s of a float32 matrix product, {MATRIX} x {MATRIX} | {possible / 1e9:.1f} |")
    click.echo(f"| the loop reaches of that | {achieved / possible:.0%} |")
    click.echo("\n| share of an update | |\n|---|---:|")
    for kind, share in loop.shares().most_common():
        click.echo(f"| {kind} | {share:.1%} |")


class Loop:
    """The updates of a training, one after another as the training makes them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.accelerator = make_accelerator(settings)
        self.dataset = load(settings, seed=settings.seed)
        self.state = build_state(settings, self.accelerator, self.dataset)
        plan = BatchPlan.of(settings, self.accelerator, num_images=len(self.dataset.train))
        self.batches = training_batches(
            self.dataset.train, plan, settings, start_step=0, stop_step=10**9,
            device=self.accelerator.device, dtype=training_dtype(self.accelerator),
        )  # fmt: skip

    def run(self, num_updates: int) -> None:
        """Makes so many updates."""
        for _ in range(num_updates):
            with record_function(UPDATE):
                with record_function(BATCHES):
                    batches = next(self.batches)
                self.state.seed_update(self.settings.seed)
                train_step(
                    self.accelerator, self.state.model, self.state.optimizer, batches, lr=LR, settings=self.settings,
                    average=self.state.average,
                )  # fmt: skip
                self.state.step += 1

    def images_per_second(self, seconds: float) -> float:
        """Over updates that take at least so long."""
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            self.run(1)
            count += 1
        return count * self.settings.batch_size / elapsed

    def shares(self) -> "Counter[str]":
        """The share of the time that each kind of operation takes by itself; they add up to 1."""
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.run(PROFILED_UPDATES)
        times: Counter[str] = Counter()
        for event in profiler.events() or ():
            times[_kind(event)] += event.self_cpu_time_total
        total = sum(times.values())
        return Counter({kind: value / total for kind, value in times.items()})


def count_flops(settings: Settings) -> int:
    """Floating-point operations of one update, two for each multiply-add, as torch counts them."""
    loop = Loop(settings.model_copy(update={"compile": False}))
    with FlopCounterMode(display=False) as counter:
        loop.run(1)
    return int(counter.get_total_flops())


def matrix_product_rate() -> float:
    """FLOP/s of a float32 matrix product, the faster of two."""
    left, right, product = torch.randn(3, MATRIX, MATRIX)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        times.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / min(times)


def _kind(event: Any) -> str:
    """What an operation is counted as: the outermost thing it is part of decides."""
    chain = [event]
    while chain[0].cpu_parent is not None:
        chain.insert(0, chain[0].cpu_parent)
    names = [one.name.lower() for one in chain]
    return next((kind for name in names for word, kind in KINDS.items() if word in name), OTHER)


if __name__ == "__main__":
    main()
