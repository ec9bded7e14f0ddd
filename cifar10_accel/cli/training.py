"""Commands that train: train, step-log, lr-range, repeat."""

from pathlib import Path
from typing import Any

import click

from cifar10_accel import __version__
from cifar10_accel.cli.flags import announce_loading, handle_user_errors, is_main_rank, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.cli.parameters import OUT, PATH, SettingValue
from cifar10_accel.settings import Settings
from cifar10_accel.signals import exit_when_parent_dies

LR = click.FloatRange(min=0, min_open=True, max=1000)


@click.command(
    cls=SettingsCommand,
    help="Train a model. Every flag is a setting, and the same command again resumes the run. "
    "For several processes: accelerate launch --multi_gpu --num_processes N -m cifar10_accel.train",
)
@settings_options
@handle_user_errors
def train(**flags: Any) -> None:
    settings = Settings(**flags)
    exit_when_parent_dies()
    if is_main_rank():
        click.echo(f"cifar10-accel {__version__}: loading PyTorch ...")
    from cifar10_accel.train import fit

    fit(settings)


@click.command(
    "step-log",
    hidden=True,
    cls=SettingsCommand,
    help="Record inputs and outputs of the first steps of a training; verify-parallel compares such records.",
)
@click.option("--out", type=OUT, required=True, help="file for the lines")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="steps")
@settings_options
@handle_user_errors
def step_log(out: Path, steps: int, **flags: Any) -> None:
    settings = Settings(**flags)
    exit_when_parent_dies()
    from cifar10_accel.commands.step_log import write_step_log

    write_step_log(settings, num_steps=steps, path=out)


@click.command(
    "lr-range",
    cls=SettingsCommand,
    help="Find a learning rate: train while it grows. Loss and accuracy are plotted against it.",
)
@click.option("--start-lr", type=LR, default=1e-4, show_default=True, help="first LR")
@click.option("--end-lr", type=LR, default=10, show_default=True, help="last LR")
@click.option("--steps", type=click.IntRange(min=10), default=150, show_default=True, help="optimizer steps")
@click.option("--growth", type=click.Choice(["exponential", "linear"]), default="exponential", show_default=True)
@click.option(
    "--out",
    type=OUT,
    default=Path("runs/lr-range"),
    show_default=True,
    help="folder for lr_range.json and lr_range.png",
)
@click.option(
    "--write-sweep",
    type=PATH,
    metavar="FILE",
    help="sweep file that gets the bounds found for max_lr; its comments stay",
)
@settings_options
@handle_user_errors
def lr_range(out: Path, write_sweep: Path | None, **flags: Any) -> None:
    schedule_flags = {name: flags.pop(name) for name in ("start_lr", "end_lr", "steps", "growth")}
    settings = Settings(**flags)
    from cifar10_accel.sweep import bounds
    from cifar10_accel.training.optimization.lr_schedule import LrRange

    # The bounds and the file are checked before the test, not after it.
    schedule = LrRange(
        total_steps=schedule_flags["steps"],
        min_lr=schedule_flags["start_lr"],
        max_lr=schedule_flags["end_lr"],
        growth=schedule_flags["growth"],
    )
    if write_sweep:
        bounds.require_max_lr_bounds(write_sweep)
    announce_loading()
    from cifar10_accel.commands import lr_range as command

    result = command.lr_range(settings, schedule=schedule)
    if not is_main_rank():
        return
    command.write(result, out)
    if result.steepest is None:
        click.echo(f"no suggestion: {result.reason}")
    else:
        click.echo(f"steepest fall of the loss at LR {result.steepest:.3g}")
        if result.tenth_of_minimum is None:
            click.echo(f"the loss still fell at LR {result.lr[-1]:.3g}: a higher --end-lr shows where it ends")
        else:
            click.echo(f"a tenth of the LR with the lowest loss: {result.tenth_of_minimum:.3g}")
    if write_sweep and result.steepest is None:
        click.echo(f"{write_sweep} is left as it was")
    elif write_sweep and result.steepest is not None:
        lowest = result.lr[-1] if result.tenth_of_minimum is None else 10 * result.tenth_of_minimum
        low, high = bounds.write_max_lr_bounds(write_sweep, steepest=result.steepest, lowest=lowest)
        click.echo(f"{write_sweep}: max_lr from {low} to {high}")
    click.echo(f"curve: {out / 'lr_range.png'}, numbers: {out / 'lr_range.json'}")


@click.command(
    cls=SettingsCommand,
    help="Train several seeds and give mean and spread. Finished runs are not trained again.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="runs; the first is --seed")
@click.option(
    "--against",
    type=SettingValue("recipe", Settings.model_fields["recipe"]),
    metavar="RECIPE",
    help="another recipe, trained with the same seeds and compared",
)
@click.option("--workers", type=click.IntRange(min=1), help="runs at a time  [default: one per GPU, or one]")
@settings_options
@handle_user_errors
def repeat(seeds: int, against: str | None, workers: int | None, **flags: Any) -> None:
    Settings(**flags)  # an invalid value is reported before torch is imported
    announce_loading()
    from cifar10_accel.commands import repeat as command
    from cifar10_accel.tracking.console import LiteralConsole

    outcome = command.repeat(flags, num_seeds=seeds, against=against, num_workers=workers, echo=click.echo)
    console = LiteralConsole(soft_wrap=True)
    console.print(command.table(outcome))
    console.print("\n".join(command.summary_lines(outcome)))
