"""Speed of the training loop relative to the limit of a CPU: `python -m benchmarks.cpu --recipe cpu`.

Prints images/s and FLOP/s of the real loop (making batches, training step), and the FLOP/s of a large matrix product
on the same threads; then the share of each kind of operation. Takes a minute and needs no data: synthetic images cost
the same. They always have full size, also if the recipe starts with smaller ones.

`--against PATH` compares with an older checkout (such as `git archive COMMIT | tar x -C PATH`) in float32 and bf16:
both take turns, each time as a process that runs this benchmark of its own checkout.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe_machine
from cifar10_accel.cli.flags import handle_user_errors, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import settings_to_flags
from cifar10_accel.training.accelerator import make_accelerator, training_dtype
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import build_state
from cifar10_accel.training.step import train_step

WARM_STEPS = 3  # the first ones choose kernels and fill caches
PROFILED_STEPS = 10
ROUNDS = 5  # loop and matrix products take turns, and the best round of each counts: other load affects both
MATRIX = 2048  # rows and columns: large enough for the best rate
NUM_IMAGES = 4096
PAIRS = 3  # of runs of two checkouts; the median of their ratios counts
HERE = Path(__file__).resolve().parents[1]
LR = 1e-6  # the model is discarded
BATCHES = "batches made"
STEP = "whole step"
# Kind of an operation, by the first of these words in its name or in that of an operation it is part of.
KINDS = {
    BATCHES: "making batches",
    "optimizer.step": "optimizer",
    "conv": "convolutions",
    "batch_norm": "norms",
    "batchnorm": "norms",
    "pool": "pooling",
    "elu": "activations",
    "silu": "activations",
    "linear": "last layer",
    "mmbackward": "last layer",
}
OTHER = "everything else"


@click.command(cls=SettingsCommand)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10,
    show_default=True,
    help="time to measure",
)
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="an older checkout to compare with, in float32 and bf16 unless --precision says which",
)
@settings_options
@handle_user_errors
def main(seconds: float, against: Path | None, **flags: Any) -> None:
    """Measure images/s and FLOP/s of the training loop on this CPU, relative to its matrix products."""
    if against is not None:
        compare(against, seconds, flags)
        return
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "KINETO_LOG_LEVEL": "99"}  # no GPU, and no message about that
    synthetic = {"dataset": "synthetic", "synthetic_size": NUM_IMAGES, "low_res_fraction": 0}
    settings = Settings(**{"recipe": "cpu"} | synthetic | flags)
    loop = Loop(settings)
    flops_per_image = count_flops(settings) / settings.batch_size
    loop.run(WARM_STEPS)
    dtype = training_dtype(loop.state.accelerator)
    rounds = [(loop.images_per_second(seconds / ROUNDS), matrix_product_rate(dtype)) for _ in range(ROUNDS)]
    rate, possible = map(max, zip(*rounds, strict=True))
    achieved = rate * flops_per_image
    click.echo(f"{describe_machine()}\n")
    click.echo(
        f"| {settings.recipe}: {settings.model}, width {settings.width}, batch {settings.batch_size}; "
        f"threads: {torch.get_num_threads()} | |\n|---|---:|"
    )
    click.echo(f"| images/s of the loop | {rate:,.0f} |")
    click.echo(f"| GFLOP per image, forward and backward | {flops_per_image / 1e9:.3f} |")
    click.echo(f"| GFLOP/s of the loop | {achieved / 1e9:.1f} |")
    kind = str(dtype).removeprefix("torch.")
    click.echo(f"| GFLOP/s of a {kind} matrix product, {MATRIX} x {MATRIX} | {possible / 1e9:.1f} |")
    click.echo(f"| the loop reaches of that | {achieved / possible:.0%} |")
    click.echo("\n| share of a step | |\n|---|---:|")
    for kind, share in loop.shares().most_common():
        click.echo(f"| {kind} | {share:.1%} |")


def compare(older: Path, seconds: float, flags: dict[str, Any]) -> None:
    """Print the images/s of two checkouts, which take turns, and the share of the matrix product's rate they reach."""
    click.echo(f"{describe_machine()}\n")
    heading = f"{flags.get('recipe', 'cpu')}: images/s of the loop"
    click.echo(f"| {heading} | {older} | of the matrix product | here | of the matrix product | ratio |")
    click.echo("|---|---:|---:|---:|---:|---:|")
    for precision in [flags["precision"]] if "precision" in flags else ["no", "bf16"]:
        given = flags | {"precision": precision}
        pairs = [[measure_checkout(folder, seconds, given) for folder in (older, HERE)] for _ in range(PAIRS)]
        rates = [median(rate for rate, _ in runs) for runs in zip(*pairs, strict=True)]
        possible = max(reached for _, (_, reached) in pairs)
        ratio = median(new / old for (old, _), (new, _) in pairs)
        cells = [cell for rate in rates for cell in (f"{rate:,.0f}", f"{rate / possible:.0%}")]
        kind = "float32" if precision == "no" else precision
        click.echo(f"| {kind} | {' | '.join(cells)} | {ratio:.2f} |")


def measure_checkout(folder: Path, seconds: float, flags: dict[str, Any]) -> tuple[float, float]:
    """Run this benchmark of a checkout; return its images/s, and those at the rate of its matrix product."""
    command = [sys.executable, "-m", "benchmarks.cpu", f"--seconds={seconds}", *settings_to_flags(flags)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} in {folder} ended with exit code {done.returncode}:\n{done.stderr}")
    rows = dict(re.findall(r"^\| (.+?) \| ([\d.,]+)%? \|$", done.stdout.replace(",", ""), re.MULTILINE))
    gflop = float(rows["GFLOP per image forward and backward"])
    possible = next(float(value) for name, value in rows.items() if "matrix product" in name)
    return float(rows["images/s of the loop"]), possible / gflop


class Loop:
    """The steps of a training, as the training loop takes them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        setup = RunSetup(make_accelerator(settings), settings, load_dataset(settings, seed=settings.seed))
        self.state = build_state(setup)
        self.batches = setup.loader.batches(0, 10**9)

    def run(self, num_steps: int) -> None:
        """Take `num_steps` steps."""
        for _ in range(num_steps):
            with record_function(STEP):
                with record_function(BATCHES):
                    batches = next(self.batches)
                train_step(self.state, batches, lr=LR)

    def images_per_second(self, seconds: float) -> float:
        """Measure the speed over steps that take at least `seconds`."""
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            self.run(1)
            count += 1
        return count * self.settings.batch_size / elapsed

    def shares(self) -> "Counter[str]":
        """Return the share of the time of each kind of operation; shares add up to 1."""
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.run(PROFILED_STEPS)
        times: Counter[str] = Counter()
        for event in profiler.events() or ():
            times[_kind(event)] += event.self_cpu_time_total
        total = sum(times.values())
        return Counter({kind: value / total for kind, value in times.items()})


def count_flops(settings: Settings) -> int:
    """Return the floating-point operations of one step, two for each multiply-add, as torch counts them in float32."""
    loop = Loop(settings.model_copy(update={"compile": False, "precision": "no"}))
    with FlopCounterMode(display=False) as counter:
        loop.run(1)
    return int(counter.get_total_flops())


def matrix_product_rate(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a matrix product in the loop's precision, the faster of two."""
    left, right, product = torch.randn(3, MATRIX, MATRIX).to(dtype)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        times.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / min(times)


def _kind(event: Any) -> str:
    """Return the kind of an operation; the outermost operation it is part of decides."""
    chain = [event]
    while chain[0].cpu_parent is not None:
        chain.insert(0, chain[0].cpu_parent)
    names = [one.name.lower() for one in chain]
    return next((kind for name in names for word, kind in KINDS.items() if word in name), OTHER)


if __name__ == "__main__":
    main()
