"""Accuracy after the same training time on one CPU, of this project and four others:

    python -m benchmarks.race --airbench CHECKOUT --fast-simple CHECKOUT --data-dir DIR --budget 10m

- this project: `cifar10-accel train --recipe auto --time-budget 10m`
- airbench94_muon.py of KellerJordan/cifar10-airbench, and train.py of 99991/cifar10-fast-simple, adapted to a CPU
  (benchmarks/race/scripts.py): the model in bf16 autocast or in float32, whichever is faster, and no torch.compile
- the Trainers of `lightning` and `transformers` with the usual ResNet-18 recipe (benchmarks/race/trainers.py)
Each is trained once for every seed, in turns, in a process of its own, alone, with the same number of threads, on all
training images; its number of steps is chosen before, by a few timed ones, so that the budget is filled. Seconds are of
training: without starting, loading data, these timed steps and evaluation. The test accuracies along the way are for
the picture alone. The output folder gets race.json, race.png and, for each seed, the files of each contestant; runs
that are in race.json are not trained again. Contestants that are not given or not installed are marked; those that
trained for more than 1.1 times the budget are marked, too, and not compared.
"""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.machine import describe_machine
from benchmarks.race import scripts
from benchmarks.race.results import RaceFile, RaceResult, draw, table
from benchmarks.race.trainers import TRAINERS
from benchmarks.race.turns import Race, run_script, run_this_project, run_trainer
from benchmarks.trainings import benchmark_flags, seeds_option
from cifar10_accel.cli.flags import handle_user_errors, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.formatting import dataset_title, error_line, format_duration
from cifar10_accel.runs.run_folder import RUNS
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import num_cores, require_no_launcher
from cifar10_accel.training.launch.precision import choose_precision

THIS_PROJECT = "this project"
CONTESTANTS = (THIS_PROJECT, scripts.AIRBENCH.name, scripts.FAST_SIMPLE.name, *TRAINERS)


@click.command(cls=SettingsCommand)
@click.option("--budget", default="10m", show_default=True, help="training time of each contestant: 90s, 10m, 1h")
@seeds_option(default=1)
@click.option("--airbench", type=click.Path(path_type=Path), help="checkout of KellerJordan/cifar10-airbench")
@click.option("--fast-simple", type=click.Path(path_type=Path), help="checkout of 99991/cifar10-fast-simple")
@click.option("--only", multiple=True, type=click.Choice(CONTESTANTS), help="this contestant; may be repeated")
@click.option("--out", type=click.Path(path_type=Path), help="folder of the results  [default: runs/race-BUDGET]")
@settings_options
@handle_user_errors
def main(
    budget: str,
    seeds: int,
    airbench: Path | None,
    fast_simple: Path | None,
    only: tuple[str, ...],
    out: Path | None,
    **flags: Any,
) -> None:
    """Compare accuracy after the same training time on this CPU with that of four others."""
    require_no_launcher("a benchmark")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    race = set_up(budget, out, flags)
    checkouts = [(scripts.AIRBENCH, airbench), (scripts.FAST_SIMPLE, fast_simple)]
    turns: dict[str, Callable[[Race], RaceResult]] = {THIS_PROJECT: run_this_project}
    for peer, checkout in checkouts:
        if checkout is not None and peer.name in (only or CONTESTANTS):
            scripts.check(peer, checkout.resolve())  # rather now than after the turns before it
            turns[peer.name] = partial(run_script, peer=peer, checkout=checkout.resolve())
    turns |= {name: partial(run_trainer, name=name) for name in TRAINERS if find_spec(name)}
    given = {name: value for name, value in race.given.items() if name != "seed"}
    conditions = {"budget": race.budget, "threads": race.num_threads, "precision": race.precision, "flags": given}
    file = RaceFile(race.out / "race.json", conditions)
    asked = {name: turns[name] for name in only or CONTESTANTS if name in turns}
    failures: dict[str, str] = {}
    for seed in range(race.settings.seed, race.settings.seed + seeds):
        failures |= take_turns(race, file, asked, seed=seed)
    click.echo(f"\n{describe_machine('accelerate', *TRAINERS)}")
    title = f"{format_duration(race.budget)} of training, {race.num_threads} thread(s), {describe_data(race)}"
    reasons = remarks(file, turns, failures)
    results = {name: file.results[name] for name in CONTESTANTS if name in file.results}
    click.echo(f"{title}\n\n{table(results, reasons, budget=race.budget)}")
    if results:
        draw(results, race.out / "race.png", title=title)
        click.echo(f"\npicture: {race.out / 'race.png'}")
    if failures:
        raise UserError(f"{len(failures)} contestant(s) failed; the same command tries them again")


def set_up(budget: str, out: Path | None, flags: dict[str, Any]) -> Race:
    """Return the race with these flags; its output folder exists.

    Raises:
        SettingsError: A flag is invalid.
    """
    given = {"recipe": "auto", "eval_every": 1} | benchmark_flags(flags) | {"time_budget": budget}
    settings = Settings(**given)
    if settings.val_size:
        raise SettingsError(f"val_size: {settings.val_size}, but all train on all training images; leave it out")
    if settings.precision == "fp16":
        raise SettingsError("precision: 'fp16', which a CPU does not compute; give bf16 or no, or leave it out")
    dataset = load_dataset(settings, seed=settings.seed)
    chosen, _ = choose_precision(torch.device("cpu"))
    folder = out or RUNS / f"race-{format_duration(float(settings.time_budget or 0))}"
    folder.mkdir(parents=True, exist_ok=True)
    return Race(
        out=folder.resolve(),
        given=given,
        settings=settings.model_copy(update={"dataset": dataset.name}),
        precision=chosen if settings.precision == "auto" else settings.precision,
        num_threads=settings.num_threads or num_cores(),
        num_train=len(dataset.train),
        echo=click.echo,
    )


def take_turns(
    race: Race, file: RaceFile, turns: dict[str, Callable[[Race], RaceResult]], *, seed: int
) -> dict[str, str]:
    """Let those contestants train, one after another, that have no result; return why some failed, by contestant."""
    failures = {}
    for name, turn in turns.items():
        if seed in file.results.get(name, {}):
            click.echo(f"{name}, seed {seed}: done before")
            continue
        click.echo(f"{name}, seed {seed} ...")
        try:
            file.add(name, seed, turn(race.with_seed(seed)))
        except UserError as error:
            click.echo(f"{name}, seed {seed}: {error}")
            failures[name] = f"failed: {error_line(error)}"
    return failures


def remarks(file: RaceFile, turns: dict[str, Any], failures: dict[str, str]) -> dict[str, str]:
    """Return why contestants have no result."""
    missing = {name: "not installed" if name in TRAINERS else "not given" for name in CONTESTANTS if name not in turns}
    reasons = dict.fromkeys(CONTESTANTS, "not trained") | missing | failures
    return {name: reason for name, reason in reasons.items() if name not in file.results}


def describe_data(race: Race) -> str:
    """Return the data set and the number of training images as text."""
    return f"{dataset_title(race.settings.dataset)}, {race.num_train:,} training images, test set"


if __name__ == "__main__":
    main()
