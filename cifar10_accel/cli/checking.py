"""The commands that check promises: on this machine, on this hardware, over seeds."""

import secrets
import sys
from pathlib import Path
from typing import Any

import click

from cifar10_accel.flags import WIDE, exits_with_one_line, is_main_rank, settings_flags
from cifar10_accel.settings import Settings

DIR = click.option("--dir", "folder", type=click.Path(path_type=Path),
                   help="new folder to keep everything in  [default: a temporary one]")  # fmt: skip


class _Counts(click.ParamType[list[int]]):
    """Numbers of processes, as 1,2,4."""

    name = "INT,INT..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is no list of process counts; give one like 1,2,4", param, ctx)
        return sorted({int(word) for word in words})


@click.command("verify-parallel", context_settings=WIDE)
@click.option("--procs", type=_Counts(), help="numbers of processes  [default: 1,2,4 as far as the machine allows]")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="updates")
@DIR
@settings_flags
@exits_with_one_line
def verify_parallel(procs: list[int] | None, steps: int, folder: Path | None, **flags: Any) -> None:
    """Check that N processes do what one does: LR, images, pixels bit for bit, loss and gradient closely."""
    from cifar10_accel import verify_parallel as verb
    from cifar10_accel.children import working_folder

    with working_folder(folder) as place:
        comparisons = verb.verify_parallel(flags, counts=procs, num_steps=steps, folder=place)
    _conclude(verb.table(comparisons), verb.explanation(comparisons), [f for c in comparisons for f in c.faults])


@click.command("verify-resume", context_settings=WIDE)
@click.option("--kills", type=click.IntRange(min=1), default=3, show_default=True, help="times the run is killed")
@click.option("--kill-seed", type=int, help="seed of the moments  [default: a new one, which is printed]")
@DIR
@settings_flags
@exits_with_one_line
def verify_resume(kills: int, kill_seed: int | None, folder: Path | None, **flags: Any) -> None:
    """Check that a training killed at random moments ends with the bits of one that is not."""
    from cifar10_accel import verify_resume as verb
    from cifar10_accel.children import working_folder

    seed = secrets.randbelow(1 << 31) if kill_seed is None else kill_seed
    click.echo(f"the moments of the kills are drawn from --kill-seed {seed}")
    with working_folder(folder) as place:
        outcome = verb.verify_resume(flags, num_kills=kills, seed=seed, folder=place, say=click.echo)
    _conclude(verb.table(outcome), verb.explanation(outcome), outcome.faults)


@click.command(context_settings=WIDE)
@settings_flags
@exits_with_one_line
def doctor(**flags: Any) -> None:
    """Check machine, launch, data and speed for a training with these settings; nothing is changed or downloaded."""
    settings = Settings(**flags)
    from cifar10_accel import doctor as verb

    exit_code = 0
    for check in verb.examine(settings):
        if is_main_rank():
            color = {"ok": "green", "warning": "yellow", "error": "red"}[check.level]
            click.echo(f"{click.style(f'{check.level:8}', fg=color)} {check.text}")
            if check.remedy:
                click.echo(f"         -> {check.remedy}")
        exit_code = max(exit_code, check.exit_code if check.level == "error" else 0)
    sys.exit(exit_code)


@click.command(context_settings=WIDE)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="runs; the first is --seed")
@click.option("--against", metavar="RECIPE", help="another recipe, trained with the same seeds and compared")
@click.option("--workers", type=click.IntRange(min=1), help="runs at a time  [default: one per GPU, or one]")
@settings_flags
@exits_with_one_line
def repeat(seeds: int, against: str | None, workers: int | None, **flags: Any) -> None:
    """Train several seeds: mean, spread and each run; finished ones are not trained again."""
    Settings(**flags)
    from cifar10_accel import repeat as verb

    outcome = verb.repeat(flags, num_seeds=seeds, against=against, num_workers=workers, say=click.echo)
    _conclude(verb.table(outcome), verb.in_words(outcome), faults=[])


def _conclude(table: Any, notes: str, faults: list[str]) -> None:
    """Prints what a verification found; exit 1 if something is not as promised."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(notes)
    for fault in faults:
        click.secho(f"FAULT: {fault}", fg="red", err=True)
    if faults:
        sys.exit(1)
