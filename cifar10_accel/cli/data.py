"""Commands for the data set: data fetch, data verify, data preview."""

from pathlib import Path
from typing import Any

import click

from cifar10_accel.cli.flags import WIDE_HELP, handle_user_errors, settings_options
from cifar10_accel.settings import Settings


@click.group()
def data() -> None:
    """Download, verify or preview the data set."""


DATA_DIR = click.option("--data-dir", help="folder of the data set; default: CIFAR10_ACCEL_DATA_DIR or data")


@data.command()
@DATA_DIR
@handle_user_errors
def fetch(data_dir: str | None) -> None:
    """Download CIFAR-10 if it is missing; an interrupted download continues."""
    folder = _data_dir(data_dir)
    from cifar10_accel.data import download

    download.fetch(folder)
    click.echo(f"CIFAR-10 is in {folder}")


@data.command()
@DATA_DIR
@handle_user_errors
def verify(data_dir: str | None) -> None:
    """Check every file against its published digest."""
    from cifar10_accel.data import cifar10_files

    for path, state in cifar10_files.verify(_data_dir(data_dir)):
        click.echo(f"{path}: {state}")


@data.command(context_settings=WIDE_HELP)
@click.option(
    "--epoch", "shown_epochs", type=click.IntRange(min=0), multiple=True, help="epochs to show  [default: 0 to 7]"
)
@click.option(
    "--index", "shown_indices", type=click.IntRange(min=0), multiple=True, help="training images  [default: 0 to 7]"
)
@click.option("--compare", is_flag=True, help="show both augmentation backends, image by image")
@click.option("--out", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True)
@settings_options
@handle_user_errors
def preview(
    shown_epochs: tuple[int, ...], shown_indices: tuple[int, ...], compare: bool, out: Path, **flags: Any
) -> None:
    """Draw training images exactly as the model gets them: one row per image, one column per epoch."""
    settings = Settings(**flags)
    from cifar10_accel.commands import preview as command

    epochs, indices = shown_epochs or tuple(range(8)), shown_indices or tuple(range(8))
    command.preview(settings, epochs=epochs, indices=indices, compare=compare, path=out)
    click.echo(f"{out}")


def _data_dir(given: str | None) -> Path:
    return Settings(**({} if given is None else {"data_dir": given})).data_dir
