"""Trainings for a benchmark: many runs, within a time limit, several in one process.

Every run has a run folder, as in `cifar10-accel repeat`: a finished run is not trained again, an interrupted one
continues. A worker trains its runs one after another in one process, so that a GPU is initialised and a model compiled
once for many short runs. When the time is over, the worker gets SIGTERM, at which a training saves and stops.
"""

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any

import click
import torch

from cifar10_accel.cli.flags import handle_user_errors
from cifar10_accel.cli.logging import show_log_messages
from cifar10_accel.commands.repeat import POLL_SECONDS, SeedRun
from cifar10_accel.commands.statistics import SampleStats
from cifar10_accel.errors import NonFiniteError, SettingsError
from cifar10_accel.formatting import dataset_title
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import (
    MachineShare,
    python_command,
    require_no_launcher,
    require_success,
    running,
    split_machine,
)
from cifar10_accel.train import fit

HOLD_OUT = 5000  # of CIFAR-10's 50,000 training images

MINUTES = click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=8,
    show_default=True,
    help="time for training in this call; the same command again continues",
)
WORKERS = click.option("--workers", type=click.IntRange(min=1), help="runs at a time  [default: one per GPU, or one]")


def seeds_option(*, default: int) -> Callable[..., Any]:
    """Return the option --seeds."""
    return click.option(
        "--seeds", type=click.IntRange(min=1), default=default, show_default=True, help="runs; the first is --seed"
    )


def benchmark_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags with the defaults of all benchmarks: no tracker, and half precision on a CUDA GPU."""
    defaults = {"tracker": "none"} | ({"precision": "fp16"} if torch.cuda.is_available() else {})
    return defaults | dict(given)


def train_for(
    minutes: float, runs: Sequence[SeedRun], *, num_workers: int | None, echo: Callable[[str], None]
) -> list[SeedRun]:
    """Train the runs that are not finished, until the time is over.

    A run that diverged (its loss or gradient was not finite) is not trained again.

    Args:
        minutes: Time limit.
        runs: The runs.
        num_workers: Runs at a time; None: one per GPU, or one on a CPU.
        echo: Called with each line of progress.

    Returns:
        The runs that are still missing.

    Raises:
        UserError: A worker failed; with the error message of the first one.
    """
    require_no_launcher("a benchmark")
    pending = [run for run in runs if not run.is_done() and not has_diverged(run)]
    echo(f"{len(pending)} of {len(runs)} runs to train, {minutes:g} minutes at most")
    shares = split_machine(num_workers, num_processes=1)[: len(pending)]
    deadline = time.monotonic() + 60 * minutes
    with ExitStack() as stack:  # leaving it stops the workers
        workers = [
            (stack.enter_context(_started(pending, worker, shares)), _log(pending, worker))
            for worker in range(len(shares))
        ]
        for process, log in workers:
            wait(process, deadline, log=log, doing="training")
    return [run for run in runs if not run.is_done()]


def wait(process: "Popen[str]", deadline: float, *, log: Path, doing: str) -> bool:
    """Wait until the process ends or the deadline of the monotonic clock has passed.

    Returns:
        True if the process has ended.

    Raises:
        UserError: The process failed; with its error message.
    """
    while process.poll() is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    require_success(process, log=log, doing=doing)
    return True


def has_diverged(run: SeedRun) -> bool:
    """Return whether the run ended because its loss or gradient was not finite."""
    return run.folder.read_json("status.json").get("exit_code") == NonFiniteError.exit_code


def summaries(runs: Sequence[SeedRun]) -> dict[int, dict[str, Any]]:
    """Return the summaries of the finished runs, by seed.

    Raises:
        SettingsError: The runs have different data sets.
    """
    found = {run.seed: run.folder.read_json("summary.json") for run in runs if run.is_done()}
    if len(names := {str(summary["dataset"]) for summary in found.values()}) > 1:
        raise SettingsError(f"dataset: the runs have {' and '.join(sorted(names))}; give one --dataset")
    return found


def describe_images(found: Mapping[int, Mapping[str, Any]], settings: Settings) -> str:
    """Return the data set and split that the accuracies were measured on, as text."""
    names = [dataset_title(str(summary["dataset"])) for summary in found.values()]
    split = f"hold-out of {settings.val_size:,} training images" if settings.val_size else "test set"
    return f"{names[0]}, {split}" if names else split


def percent(value: float) -> str:
    """Return 0..1 in percent; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.2%}"


def mean_and_interval(values: SampleStats) -> str:
    """Return the mean of an accuracy with the half width of its 95% interval, if there is one."""
    return percent(values.mean) + ("" if values.num < 2 else f" +- {values.high - values.mean:.2%}")


def _started(runs: Sequence[SeedRun], worker: int, shares: Sequence[MachineShare]) -> Any:
    """Return the context of a worker that trains every `len(shares)`-th run."""
    share = shares[worker]
    given = [dict(run.flags) for run in runs[worker :: len(shares)]]
    if share.num_threads is not None:
        given = [{"num_threads": share.num_threads} | flags for flags in given]
    log = _log(runs, worker)
    log.parent.mkdir(parents=True, exist_ok=True)
    queue = log.with_suffix(".json")
    queue.write_text(json.dumps(given, default=str))
    return running(
        python_command(["-m", "benchmarks.trainings", str(queue)], num_processes=1),
        log=log,
        environment=share.environment,
    )


def _log(runs: Sequence[SeedRun], worker: int) -> Path:
    return runs[0].folder.path.parent / f"worker-{worker}.log"


@click.command()
@click.argument("queue", type=click.Path(exists=True, path_type=Path))
@handle_user_errors
def work(queue: Path) -> None:
    """Train the runs in a JSON file, one after another in this process; the benchmarks start this command."""
    show_log_messages()
    for flags in json.loads(queue.read_text()):
        try:
            fit(Settings(**flags))
        except NonFiniteError as error:  # recorded in its run folder; the others can still be trained
            print(f"warning: {flags['run_dir']}: {error}", file=sys.stderr)
        gc.collect()  # models are in reference cycles, which would fill the memory of a GPU


if __name__ == "__main__":
    work()
