"""Trainings for a benchmark: many runs, in pieces of bounded time that add up, several in one process.

Every run is a run folder, as `cifar10-accel repeat` plans them: one that is finished is not trained again, one
that was cut off continues. A worker trains its runs one after another, so a GPU is started and a net compiled
once for many short runs; when the time is over it gets the signal that every training obeys: save and stop.
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

from cifar10_accel.children import refuse_launcher, require_success
from cifar10_accel.errors import NonFiniteError, SettingsError
from cifar10_accel.flags import exits_with_one_line
from cifar10_accel.processes import python_command, running
from cifar10_accel.repeat import POLL_SECONDS, Seed, share_of_machine
from cifar10_accel.results import labelled
from cifar10_accel.settings import Settings
from cifar10_accel.spread import Spread
from cifar10_accel.train import train

HOLD_OUT = 5000  # of CIFAR-10's 50,000 training images

MINUTES = click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=8, show_default=True,
    help="time for training in this call; the same command again continues",
)  # fmt: skip
WORKERS = click.option(
    "--workers", type=click.IntRange(min=1), help="runs at a time  [default: one per GPU, or one]"
)  # fmt: skip


def seeds_option(*, default: int) -> Callable[..., Any]:
    """The option --seeds."""
    return click.option(
        "--seeds", type=click.IntRange(min=1), default=default, show_default=True, help="runs; the first is --seed"
    )


def benchmark_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with what every benchmark sets unless they do: no tracker, and half precision on a CUDA GPU."""
    defaults = {"tracker": "none"} | ({"precision": "fp16"} if torch.cuda.is_available() else {})
    return defaults | dict(given)


def train_for(
    minutes: float, runs: Sequence[Seed], *, num_workers: int | None, say: Callable[[str], None]
) -> list[Seed]:
    """Trains what is not finished, until the time is over; returns the runs that are still missing.

    num_workers: runs at a time (None: one per GPU, or one). A run whose loss stopped being finite stays missing
    and is not tried again. Raises a `UserError` with the words of the first worker that fails.
    """
    refuse_launcher("a benchmark")
    pending = [run for run in runs if not run.is_done() and not has_diverged(run)]
    say(f"{len(pending)} of {len(runs)} runs to train, {minutes:g} minutes at most")
    count = min(num_workers or max(1, torch.accelerator.device_count()), len(pending))
    deadline = time.monotonic() + 60 * minutes
    with ExitStack() as stack:  # leaving it stops the workers
        workers = [(stack.enter_context(_started(pending, n, count)), _log(pending, n)) for n in range(count)]
        for process, log in workers:
            wait(process, deadline, log=log, doing="training")
    return [run for run in runs if not run.is_done()]


def wait(process: "Popen[str]", deadline: float, *, log: Path, doing: str) -> bool:
    """Waits until the process or the time (of the monotonic clock) ends; whether it was the process.

    Raises a `UserError` with its last words if it failed.
    """
    while process.poll() is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    require_success(process, log=log, doing=doing)
    return True


def has_diverged(run: Seed) -> bool:
    """Whether the run ended because its loss or gradient was not finite."""
    return run.folder.read_json("status.json").get("exit_code") == NonFiniteError.exit_code


def summaries(runs: Sequence[Seed]) -> dict[int, dict[str, Any]]:
    """What the finished ones of the runs came to, by seed. Raises `SettingsError` if they mix data sets."""
    found = {run.seed: run.folder.read_json("summary.json") for run in runs if run.is_done()}
    if len(names := {str(summary["dataset"]) for summary in found.values()}) > 1:
        raise SettingsError(f"dataset: the runs have {' and '.join(sorted(names))}; give one --dataset")
    return found


def images_of(found: Mapping[int, Mapping[str, Any]], settings: Settings) -> str:
    """Which images the accuracies of some summaries are of."""
    names = [labelled(str(summary["dataset"])) for summary in found.values()]
    split = f"hold-out of {settings.val_size:,} training images" if settings.val_size else "test set"
    return f"{names[0]}, {split}" if names else split


def percent(value: float) -> str:
    """0..1 as percent; a dash for what cannot be known."""
    return "-" if math.isnan(value) else f"{value:.2%}"


def mean_and_interval(values: Spread) -> str:
    """The mean of an accuracy with the half width of its 95% interval, if there is one."""
    return percent(values.mean) + ("" if values.num < 2 else f" +- {values.high - values.mean:.2%}")


def _started(runs: Sequence[Seed], worker: int, num_workers: int) -> Any:
    """The context of a worker that trains every `num_workers`-th run."""
    environment, num_threads = share_of_machine(worker, num_workers)
    given = [dict(run.flags) for run in runs[worker::num_workers]]
    if num_threads is not None:
        given = [{"num_threads": num_threads} | flags for flags in given]
    log = _log(runs, worker)
    log.parent.mkdir(parents=True, exist_ok=True)
    queue = log.with_suffix(".json")
    queue.write_text(json.dumps(given, default=str))
    return running(
        python_command(["-m", "benchmarks.trainings", str(queue)], num_processes=1), log=log, environment=environment
    )


def _log(runs: Sequence[Seed], worker: int) -> Path:
    return runs[0].folder.path.parent / f"worker-{worker}.log"


@click.command()
@click.argument("queue", type=click.Path(exists=True, path_type=Path))
@exits_with_one_line
def work(queue: Path) -> None:
    """Train the runs in a JSON file, one after another in this process; the benchmarks start this themselves."""
    for flags in json.loads(queue.read_text()):
        try:
            train(Settings(**flags))
        except NonFiniteError as error:  # its folder says so; the others can still be trained
            print(f"warning: {flags['run_dir']}: {error}", file=sys.stderr)
        gc.collect()  # nets hang in cycles, which on a GPU would pile up


if __name__ == "__main__":
    work()
