"""Commands that check this machine: doctor, verify-parallel, verify-resume."""

import secrets
import sys
from pathlib import Path
from typing import Any

import click

from cifar10_accel.cli.flags import announce_loading, handle_user_errors, is_main_rank, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.cli.parameters import OUT
from cifar10_accel.settings import Settings

DIR = click.option(
    "--dir",
    "folder",
    type=OUT,
    help="new folder to keep everything in  [default: a temporary one]",
)


class _Counts(click.ParamType[list[int]]):
    """Parameter type: process counts such as 1,2,4."""

    name = "INT,INT..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is no list of process counts; give one like 1,2,4", param, ctx)
        return sorted({int(word) for word in words})


@click.command(
    "verify-parallel",
    cls=SettingsCommand,
    help="Check that N processes train as one does. LR, images and pixels must be equal bit for bit, loss and "
    "gradient closely.",
)
@click.option("--procs", type=_Counts(), help="numbers of processes  [default: 1,2,4 as far as the machine allows]")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="optimizer steps")
@DIR
@settings_options
@handle_user_errors
def verify_parallel(procs: list[int] | None, steps: int, folder: Path | None, **flags: Any) -> None:
    announce_loading()
    from cifar10_accel.commands import verify_parallel as command
    from cifar10_accel.subprocesses import working_folder

    with working_folder(folder) as place:
        comparisons = command.verify_parallel(flags, counts=procs, num_steps=steps, folder=place)
    _conclude(command.table(comparisons), command.explanation(comparisons), [f for c in comparisons for f in c.faults])


@click.command(
    "verify-resume",
    cls=SettingsCommand,
    help="Check that a killed run ends with the same bits. It is killed at random times and compared with an "
    "uninterrupted one.",
)
@click.option("--kills", type=click.IntRange(min=1), default=3, show_default=True, help="times the run is killed")
@click.option("--kill-seed", type=int, help="seed of the times of the kills  [default: a new one, which is printed]")
@DIR
@settings_options
@handle_user_errors
def verify_resume(kills: int, kill_seed: int | None, folder: Path | None, **flags: Any) -> None:
    announce_loading()
    from cifar10_accel.commands import verify_resume as command
    from cifar10_accel.subprocesses import working_folder

    seed = secrets.randbelow(1 << 31) if kill_seed is None else kill_seed
    click.echo(f"the times of the kills are drawn from --kill-seed {seed}")
    with working_folder(folder) as place:
        outcome = command.verify_resume(flags, num_kills=kills, seed=seed, folder=place, echo=click.echo)
    _conclude(command.table(outcome), command.explanation(outcome), outcome.faults)


@click.command(
    cls=SettingsCommand,
    help="Check machine, launch, data and speed. Give it the settings of the training; nothing is changed or "
    "downloaded.",
)
@settings_options
@handle_user_errors
def doctor(**flags: Any) -> None:
    settings = Settings(**flags)
    announce_loading()
    from cifar10_accel.commands import doctor as command

    exit_code = 0
    for check in command.examine(settings):
        if is_main_rank():
            color = {"ok": "green", "warning": "yellow", "error": "red"}[check.level]
            click.echo(f"{click.style(f'{check.level:8}', fg=color)} {check.text}")
            if check.remedy:
                click.echo(f"         -> {check.remedy}")
        exit_code = max(exit_code, check.exit_code if check.level == "error" else 0)
    sys.exit(exit_code)


def _conclude(table: Any, notes: str, faults: list[str]) -> None:
    """Print the results of a verification; exit with 1 if there are faults."""
    from cifar10_accel.tracking.console import LiteralConsole

    console = LiteralConsole(soft_wrap=True)
    console.print(table)
    console.print(notes)
    for fault in faults:
        click.secho(f"FAULT: {fault}", fg="red", err=True)
    if faults:
        sys.exit(1)
