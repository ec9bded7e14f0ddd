"""Timed trainings of this project, with the time measured as in the public speed runs.

The time includes the whitening statistics, all steps and one evaluation with TTA. Unlike in the speed runs it also
includes building the model and its optimizer and copying the images to the device, which cannot be separated from
these. A whole training precedes, so that kernels are chosen and compiled.
"""

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass

import click
import torch

from cifar10_accel.cli.flags import handle_user_errors
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.evaluation import evaluate_split
from cifar10_accel.training.lr_schedule import make_schedule
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import TrainingState, build_state
from cifar10_accel.training.step import train_step


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """One training; accuracies are 0..1."""

    plain: float
    tta: float | None  # None: the recipe has no TTA
    seconds: float  # total
    train_seconds: float  # without the evaluation


def timed_run(settings: Settings, dataset: Dataset) -> TimedRun:
    """Train once and evaluate on the test set, or on the hold-out if there is one."""
    setup = RunSetup(make_accelerator(settings), settings, dataset)
    split = dataset.test if dataset.val is None else dataset.val
    gc.collect()  # objects of the previous run
    start = _now()
    state = build_state(setup)
    _all_steps(state, setup)
    trained = _now()
    plain, tta = evaluate_split(
        setup.accelerator, state.evaluated_model, split, batch_size=settings.eval_batch_size, tta=settings.tta
    )
    end = _now()
    return TimedRun(
        plain=plain.accuracy(),
        tta=None if tta is None else tta.accuracy(),
        seconds=end - start,
        train_seconds=trained - start,
    )


def _all_steps(state: TrainingState, setup: RunSetup) -> None:
    schedule = make_schedule(setup.settings, steps_per_epoch=setup.plan.steps_per_epoch)
    for batches in setup.loader.batches(0, schedule.total_steps):
        train_step(state, batches, lr=schedule.lr_at(state.step))


def _now() -> float:
    """Return the time in seconds, after all work of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@click.command()
@click.argument("flags")
@click.argument("num_runs", type=int)
@handle_user_errors
def main(flags: str, num_runs: int) -> None:
    """Train once to warm up, then NUM_RUNS times from the seed in FLAGS (JSON) on; print a JSON line each."""
    settings = Settings(**json.loads(flags))
    dataset = load_dataset(settings, seed=settings.seed)
    timed_run(settings, dataset)
    for seed in range(settings.seed, settings.seed + num_runs):
        print(json.dumps(asdict(timed_run(settings.model_copy(update={"seed": seed}), dataset))), flush=True)


def read_ours(text: str) -> list[TimedRun]:
    """Return the runs in the output of `main`."""
    return [TimedRun(**json.loads(line)) for line in text.splitlines() if line.startswith('{"plain"')]


if __name__ == "__main__":
    sys.exit(main())
