"""The piece `fit`: what users get beside what speed runs measure.

The same recipe is trained by `timed_run`, whose time is that of the steps alone, and by `fit`, which also keeps the
training dynamics, metrics, checkpoints and a report in a run folder. They take turns.
"""

import shutil
import time
from contextlib import redirect_stdout
from statistics import median
from typing import Any

import click

from benchmarks.gpu.seeds import LEAST_SECONDS, real_data, warm_up
from benchmarks.gpu.session import Session, now, read_json, release_memory, write_json
from benchmarks.timed import timed_run
from cifar10_accel.train import fit

RECIPES = ("speed94", "resnet9")
ROUNDS = 3


def print_whole_fit(session: Session) -> None:
    """Make the rounds that are missing, until the time is over, and print the table."""
    rows = {recipe: _rounds(session, recipe) for recipe in RECIPES}
    click.echo(
        f"\n| {session.device}, seconds, median | training by `timed_run` | training by `fit`, its stopwatch | ratio "
        "| `fit`, everything | n |\n|---|---:|---:|---:|---:|---:|"
    )
    for recipe, rounds in rows.items():
        if rounds:
            steps, watch, wall = (median(one[name] for one in rounds) for name in ("steps", "stopwatch", "wall"))
            click.echo(f"| {recipe} | {steps:.3f} | {watch:.3f} | {watch / steps:.3f} | {wall:.2f} | {len(rounds)} |")
    wanted = _wanted(session)
    if missing := sum(wanted - len(rounds) for rounds in rows.values()):
        click.echo(f"missing: {missing} of {wanted * len(rows)} rounds; the same command continues")


def _wanted(session: Session) -> int:
    return 1 if session.is_tiny else ROUNDS


def _rounds(session: Session, recipe: str) -> list[dict[str, Any]]:
    """Return the rounds of a recipe, those of earlier calls included."""
    settings, dataset = real_data(session.settings(recipe))
    folder = session.folder("fit")
    path = folder / f"{recipe}-{settings.precision}-{settings.fingerprint()}-{dataset.name}.json"
    saved = read_json(path)
    rounds: list[dict[str, Any]] = saved["rounds"] if saved.get("conditions") == session.conditions else []
    if len(rounds) >= _wanted(session):
        return rounds
    release_memory()
    if not session.has_time(session.warm_up_seconds):
        return rounds
    warm_up(session, settings, dataset)
    longest = LEAST_SECONDS
    while len(rounds) < _wanted(session) and session.has_time(1.3 * longest):
        begin = time.perf_counter()
        run = timed_run(settings, dataset)
        run_dir = folder / f"run-{recipe}"
        shutil.rmtree(run_dir, ignore_errors=True)
        start = now()
        with (folder / f"{recipe}.log").open("w") as log, redirect_stdout(log):
            done = fit(settings.replace(run_dir=run_dir, dataset=dataset.name))
        wall = now() - start
        rounds.append({"steps": run.train_seconds, "stopwatch": done.summary["train_seconds"], "wall": wall})
        write_json(path, {"conditions": session.conditions, "rounds": rounds})
        click.echo(f"{recipe}: {', '.join(f'{name} {value:.3f} s' for name, value in rounds[-1].items())}")
        longest = time.perf_counter() - begin
    return rounds
