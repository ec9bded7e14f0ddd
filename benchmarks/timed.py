"""Timed trainings of ours: the functions of the training loop, on the clock of the public speed runs.

The clock runs over the whitening statistics, all updates and one evaluation with TTA, and over what of ours cannot
be taken apart from them: the net and its optimizer are built, the images are copied to the device. A whole
training goes before, so that kernels are chosen and compiled.
"""

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass

import click
import torch
from accelerate import Accelerator

from cifar10_accel.data.batches import BatchPlan, training_batches
from cifar10_accel.data.cifar10 import Dataset, load
from cifar10_accel.engine import evaluate_pass, train_step
from cifar10_accel.flags import exits_with_one_line
from cifar10_accel.launch import make_accelerator, training_dtype
from cifar10_accel.settings import Settings
from cifar10_accel.train import one_cycle
from cifar10_accel.training_state import TrainingState, build_state


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """One training; accuracies are 0..1."""

    plain: float
    tta: float | None  # None: the recipe has no TTA
    seconds: float  # all that the clock counts
    train_seconds: float  # without the evaluation


def timed_run(settings: Settings, dataset: Dataset) -> TimedRun:
    """Trains once; measured on the test set, or on the hold-out if there is one."""
    accelerator = make_accelerator(settings)
    split = dataset.test if dataset.val is None else dataset.val
    gc.collect()  # what the run before has left
    start = _now()
    state = build_state(settings, accelerator, dataset)
    _all_updates(state, accelerator, dataset, settings)
    trained = _now()
    plain, tta = evaluate_pass(
        accelerator, state.evaluated, split, batch_size=settings.eval_batch_size, tta=settings.tta
    )
    end = _now()
    return TimedRun(
        plain=plain.accuracy(), tta=None if tta is None else tta.accuracy(), seconds=end - start,
        train_seconds=trained - start,
    )  # fmt: skip


def _all_updates(state: TrainingState, accelerator: Accelerator, dataset: Dataset, settings: Settings) -> None:
    plan = BatchPlan.of(settings, accelerator, num_images=len(dataset.train))
    schedule = one_cycle(settings, steps_per_epoch=plan.steps_per_epoch)
    for batches in training_batches(
        dataset.train, plan, settings, start_step=0, stop_step=schedule.total_steps,
        device=accelerator.device, dtype=training_dtype(accelerator),
    ):  # fmt: skip
        state.seed_update(settings.seed)
        train_step(
            accelerator, state.model, state.optimizer, batches, lr=schedule.lr_at(state.step), settings=settings,
            average=state.average,
        )  # fmt: skip
        state.step += 1


def _now() -> float:
    """Seconds on a clock, when the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@click.command()
@click.argument("flags")
@click.argument("num_runs", type=int)
@exits_with_one_line
def main(flags: str, num_runs: int) -> None:
    """Train once to warm up, then NUM_RUNS times from the seed in FLAGS (JSON) on; print a JSON line each."""
    settings = Settings(**json.loads(flags))
    dataset = load(settings, seed=settings.seed)
    timed_run(settings, dataset)
    for seed in range(settings.seed, settings.seed + num_runs):
        print(json.dumps(asdict(timed_run(settings.model_copy(update={"seed": seed}), dataset))), flush=True)


def read_ours(text: str) -> list[TimedRun]:
    """The runs in what `main` has printed."""
    return [TimedRun(**json.loads(line)) for line in text.splitlines() if line.startswith('{"plain"')]


if __name__ == "__main__":
    sys.exit(main())
