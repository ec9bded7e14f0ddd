"""The pieces `seeds-RECIPE`: accuracy and time of a recipe over several seeds, all trained in this process."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
import torch._dynamo

from benchmarks.gpu.session import Session
from benchmarks.timed import TimedRun, timed_run
from benchmarks.trainings import mean_and_interval, percent
from cifar10_accel.commands.statistics import SampleStats
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import ensure_dataset, load_dataset
from cifar10_accel.formatting import dataset_title
from cifar10_accel.settings import Settings

LEAST_SECONDS = 15.0  # for the first run after the warm-up
HEADER = "| {} | mean | sd | min | max | n |\n|---|---:|---:|---:|---:|---:|"


def train_seeds(session: Session, recipe: str, *, default_seeds: int) -> None:
    """Train the seeds that are missing, until the time is over; print a line for each and the table."""
    settings, dataset = real_data(session.settings(recipe))
    num_seeds = session.num_seeds or (1 if session.is_tiny else default_seeds)
    wanted = range(settings.seed, settings.seed + num_seeds)
    results = session.folder("seeds") / f"{recipe}-{settings.precision}-{settings.fingerprint()}-{settings.tta}.jsonl"
    key = {"conditions": session.conditions, "dataset": dataset.name}
    done = read_runs(results, key)
    missing = [seed for seed in wanted if seed not in done]
    if not session.has_time(session.warm_up_seconds):
        missing = []  # for the next call: without a warm-up the first run would include compiling
    if missing:
        warm_up(session, settings, dataset)
    longest = LEAST_SECONDS
    for seed in missing:
        if not session.has_time(1.3 * longest):
            break
        start = time.perf_counter()
        with torch._dynamo.config.patch(error_on_recompile=True):  # it would be measured too
            run = timed_run(settings.model_copy(update={"seed": seed}), dataset)
        longest = time.perf_counter() - start
        with results.open("a") as file:
            file.write(json.dumps(key | {"seed": seed, "run": asdict(run)}) + "\n")
        done[seed] = run
        click.echo(f"seed {seed}: {describe(run)}")
    runs = [done[seed] for seed in wanted if seed in done]
    click.echo(f"\n{recipe}, {settings.precision}, {dataset_title(dataset.name)}, {session.device}")
    click.echo(table(runs, settings))
    if len(runs) < num_seeds:
        click.echo(f"missing: {num_seeds - len(runs)} of {num_seeds} seeds; the same command continues")


def real_data(settings: Settings) -> tuple[Settings, Dataset]:
    """Return the settings with their data set named, and the data set: CIFAR-10 where it is, else synthetic images."""
    name = ensure_dataset(settings)
    settings = settings.model_copy(update={"dataset": name})
    return settings, load_dataset(settings, seed=settings.seed)


def warm_up(session: Session, settings: Settings, dataset: Dataset) -> None:
    """Train one epoch, and one with small images if there are any, so that kernels are chosen and compiled."""
    start = time.perf_counter()
    length = {"epochs": 2, "low_res_fraction": 0.5} if settings.low_res_epochs else {"epochs": 1}
    timed_run(settings.model_copy(update=length | {"peak_epoch": min(settings.peak_epoch, 0.5)}), dataset)
    click.echo(f"warm-up: {time.perf_counter() - start:.1f} s")


def read_runs(path: Path, key: dict[str, Any]) -> dict[int, TimedRun]:
    """Return the runs in a results file that were made under these conditions, by seed."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["seed"]: TimedRun(**row["run"]) for row in rows if key.items() <= row.items()}


def describe(run: TimedRun) -> str:
    """Return one line with accuracies and times."""
    tta = "" if run.tta is None else f", with TTA {percent(run.tta)}"
    return f"plain {percent(run.plain)}{tta}; {run.train_seconds:.3f} s of training, {run.seconds:.3f} s in all"


def table(runs: list[TimedRun], settings: Settings) -> str:
    """Return a table of accuracies, with 95% intervals of the mean, and times over the seeds."""
    if not runs:
        return "no run yet"
    accuracies = {"accuracy, plain": [run.plain for run in runs]}
    if with_tta := [run.tta for run in runs if run.tta is not None]:
        accuracies[f"accuracy, TTA ({settings.tta})"] = with_tta
    seconds = {
        "seconds of training": [run.train_seconds for run in runs],
        "seconds with the evaluation": [run.seconds for run in runs],
    }
    rows = [HEADER.format("")]
    for title, values in accuracies.items():
        stats = SampleStats.of(values)
        cells = [mean_and_interval(stats), percent(stats.sd), percent(stats.minimum), percent(stats.maximum)]
        rows.append(f"| {title} | {' | '.join(cells)} | {stats.num} |")
    for title, values in seconds.items():
        stats = SampleStats.of(values)
        cells = [f"{value:.3f}" for value in (stats.mean, stats.sd, stats.minimum, stats.maximum)]
        rows.append(f"| {title} | {' | '.join(cells)} | {stats.num} |")
    return "\n".join(rows)
