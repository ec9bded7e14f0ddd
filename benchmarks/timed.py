"""Timed trainings of this project, with the time measured as in the public speed runs.

The time includes the whitening statistics, all steps of `train_step` with their batches, and one evaluation with TTA.
It does not include building the model and its optimizer, copying the images to the device, choosing and compiling
kernels (a whole training precedes), nor what `fit` does besides: metrics, training dynamics, checkpoints, report.
`fit_seconds` is the training time of a run of `fit`, which has all of these but the report.
"""

import copy
import gc
import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
import torch._dynamo

from cifar10_accel.cli.flags import handle_user_errors
from cifar10_accel.data.batch_plan import epoch_order
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.models.registry import fit_whitening
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.cuda_graphs import EAGER_STEPS
from cifar10_accel.training.evaluation import evaluate_split
from cifar10_accel.training.optimization.lr_schedule import make_schedule
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import TrainingState, build_state, some_training_images
from cifar10_accel.training.step import train_step


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """One training; accuracies are 0..1."""

    plain: float
    tta: float | None  # None: the recipe has no TTA
    seconds: float  # total
    train_seconds: float  # without the evaluation


def timed_run(settings: Settings, dataset: Dataset) -> TimedRun:
    """Train once and evaluate on the test set, or on the hold-out if there is one.

    Like the speed runs it takes some steps before the clock starts and then sets everything back: they record the CUDA
    graph, which belongs to the weights of this one model. With averaged weights it is recorded on the clock, because
    the first step differs; so is a second one, of full-size images after smaller ones.
    """
    setup = RunSetup(make_accelerator(settings), settings, dataset)
    state, schedule = build_state(setup), make_schedule(settings, steps_per_epoch=setup.plan.steps_per_epoch)
    if state.cuda_graphs is not None and state.average is None:
        _record_graph(state, setup)
    gc.collect()  # objects of the previous run
    start = _now()
    if settings.whitening:  # once more, because the speed runs count it
        fit_whitening(state.model, some_training_images(dataset, setup.accelerator.device))
    for batches in setup.loader.batches(0, schedule.total_steps):
        train_step(state, batches, lr=schedule.lr_at(state.step))
    trained = _now()
    plain, tta = evaluate_split(
        setup.accelerator,
        state.evaluated_model,
        dataset.test if dataset.val is None else dataset.val,
        batch_size=settings.eval_batch_size,
        tta=settings.tta,
    )
    end = _now()
    return TimedRun(
        plain=plain.accuracy(),
        tta=None if tta is None else tta.accuracy(),
        seconds=end - start,
        train_seconds=trained - start,
    )


def _record_graph(state: TrainingState, setup: RunSetup) -> None:
    """Take steps until they are a CUDA graph, then set the state back to where it was, in place."""
    scaler = state.accelerator.scaler
    before = copy.deepcopy(state.model.state_dict())
    loss_scale = {} if scaler is None else scaler.state_dict()
    for batches in setup.loader.batches(0, EAGER_STEPS + 1):
        train_step(state, batches, lr=0.0)
    state.model.load_state_dict(before)
    if scaler is not None:
        scaler.load_state_dict(loss_scale)
    for buffers in state.optimizer.state.values():
        buffers["momentum_buffer"].zero_()
    state.metrics_since_log.zero_()
    state.step = 0
    epoch_order.cache_clear()  # the order of the images is made on the clock


def fit_seconds(settings: Settings) -> float:
    """Return the seconds of training that `fit` itself reports: with metrics and dynamics, without evaluation."""
    with TemporaryDirectory() as folder:
        run = fit(settings.model_copy(update={"run_dir": Path(folder) / "run", "tracker": "none"}))
        return float(run.summary["train_seconds"])


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
    """Train once to warm up, then NUM_RUNS times from the seed in FLAGS (JSON) on; print a JSON line each.

    The last line is the training time of one run of `fit`.
    """
    settings = Settings(**json.loads(flags))
    dataset = load_dataset(settings, seed=settings.seed)
    timed_run(settings, dataset)
    torch._dynamo.config.error_on_recompile = True
    for seed in range(settings.seed, settings.seed + num_runs):
        print(json.dumps(asdict(timed_run(settings.model_copy(update={"seed": seed}), dataset))), flush=True)
    with redirect_stdout(sys.stderr):
        seconds = fit_seconds(settings)
    print(json.dumps({"fit_seconds": seconds}), flush=True)


def read_ours(text: str) -> list[TimedRun]:
    """Return the runs in the output of `main`."""
    return [TimedRun(**json.loads(line)) for line in text.splitlines() if line.startswith('{"plain"')]


if __name__ == "__main__":
    sys.exit(main())
