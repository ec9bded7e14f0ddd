"""Everything that a GPU is needed for, in pieces: `python -m benchmarks.gpu PIECE... --data-dir DIR`.

Each piece ends by itself before the time of the call is over, keeps its results in the output folder and prints its
table last; the same command again continues. A piece that fails does not stop the others.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import augment, loop, speed94
from benchmarks.gpu.checks import run_checks
from benchmarks.gpu.facts import print_machine
from benchmarks.gpu.profiling import profile_recipes
from benchmarks.gpu.seeds import train_seeds
from benchmarks.gpu.session import Session, release_memory
from benchmarks.gpu.whole_fit import print_whole_fit
from cifar10_accel.cli.flags import handle_user_errors, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.cli.logging import show_log_messages
from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.runs.run_folder import RUNS
from cifar10_accel.subprocesses import require_no_launcher, settings_to_flags

LOOP_ROUND_SECONDS = 15.0  # of one turn of all contestants


def compare_speed(session: Session) -> None:
    """Time `speed94` beside its peer, see benchmarks/speed94.py."""
    runs = session.num_seeds or (1 if session.is_tiny else 10)
    arguments = [f"--runs={runs}", f"--out={session.folder('speed94')}", f"--minutes={session.seconds_left() / 60}"]
    if session.airbench is not None:
        arguments.append(f"--airbench={session.airbench}")
    _run_command(speed94.main, [*arguments, *settings_to_flags(session.flags("speed94"))])


def print_augmentation(session: Session) -> None:
    """Print the speed of augmentation on the GPU, see benchmarks/augment.py."""
    if torch.cuda.is_available():
        augment.print_gpu()
    else:
        click.echo("skipped (needs CUDA)")


def compare_loops(session: Session) -> None:
    """Compare training loops, see benchmarks/loop.py."""
    rounds = min(5, int(session.seconds_left() / LOOP_ROUND_SECONDS))
    if rounds < 1:
        click.echo("missing: not enough time is left; the same command continues")
        return
    tiny = ["--width=4", "--batch-size=4", "--steps=2", "--empty-steps=2", "--threads=1"]
    _run_command(loop.main, ["--rounds=1", *tiny] if session.is_tiny else [f"--rounds={rounds}"])


def _run_command(command: click.Command, arguments: list[str]) -> None:
    """Run the command of another benchmark; `UserError` if it fails."""
    try:
        command.main(arguments, standalone_mode=False)
    except SystemExit as end:
        if end.code:
            raise UserError(f"{command.callback.__module__}: exit code {end.code}") from None


# In the order of `all`.
PIECES: dict[str, Callable[[Session], None]] = {
    "machine": print_machine,
    "checks": run_checks,
    "profile": profile_recipes,
    "seeds-resnet9": partial(train_seeds, recipe="resnet9", default_seeds=5),
    "seeds-resnet9_plus": partial(train_seeds, recipe="resnet9_plus", default_seeds=5),
    "speed94": compare_speed,
    "seeds-accuracy96": partial(train_seeds, recipe="accuracy96", default_seeds=3),
    "augmentation": print_augmentation,
    "loop": compare_loops,
    "fit": print_whole_fit,
}


@click.command(cls=SettingsCommand)
@click.argument("pieces", nargs=-1, required=True, type=click.Choice([*PIECES, "all"]))
@click.option(
    "--out", type=click.Path(path_type=Path), default=RUNS / "gpu", show_default=True, help="folder for all results"
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=9, show_default=True, help="time of this call"
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda where there is a GPU]")
@click.option("--tiny", is_flag=True, help="the smallest models and few images, to see that everything runs")
@click.option("--airbench", type=click.Path(path_type=Path), help="the peer of speed94, see benchmarks.speed94")
@click.option("--seeds", type=click.IntRange(min=1), help="seeds of seeds-*, runs in a block of speed94")
@click.option("--jobs", type=click.IntRange(min=1), default=8, show_default=True, help="checks at a time")
@settings_options
@handle_user_errors
def main(
    pieces: tuple[str, ...],
    out: Path,
    minutes: float,
    device: str | None,
    tiny: bool,
    airbench: Path | None,
    seeds: int | None,
    jobs: int,
    **flags: Any,
) -> None:
    """Check and measure this project on a GPU, piece by piece: machine, checks, profile, seeds-RECIPE, speed94,
    augmentation, loop, fit; or all."""
    start = time.time()
    require_no_launcher("a benchmark")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device: there is no CUDA GPU; give --device cpu --tiny to see that everything runs")
    show_log_messages()
    session = Session(
        out=out.resolve(),
        given=flags,
        is_tiny=tiny,
        num_seeds=seeds,
        num_jobs=jobs,
        airbench=airbench.resolve() if airbench else None,
        deadline=start + 60 * minutes,
    )
    session.folder("")
    failed: list[str] = []
    for name in PIECES if "all" in pieces else pieces:
        left = session.seconds_left()
        click.secho(f"\n== {name} ({left:.0f} s left)", bold=True)
        if left <= 0:
            click.echo("missing: the time is over; the same command continues")
            continue
        try:
            PIECES[name](session)
        except Exception as error:  # the other pieces go on
            failed.append(name)
            if not isinstance(error, UserError):
                traceback.print_exc()
            click.secho(f"error: {name}: {error}", fg="red", err=True)
        release_memory()
        sys.stdout.flush()
    click.echo(f"\nresults: {session.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
