"""Commands for the data set: data fetch, data verify, data preview."""

from pathlib import Path
from typing import Any

import click

from cifar10_accel.cli.flags import announce_loading, handle_user_errors, setting_option, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.cli.parameters import OUT
from cifar10_accel.settings import Settings

data = click.Group("data", help="Download, check or draw the data set.")


DATA_DIR = setting_option("data_dir", "folder of the data set; default: CIFAR10_ACCEL_DATA_DIR or data")
DATASET = click.option(
    "--dataset", type=click.Choice(["cifar10", "cifar100"]), default="cifar10", show_default=True, help="the data set"
)


@data.command(help="Download CIFAR-10 or CIFAR-100 if it is missing; an interrupted download continues.")
@DATASET
@DATA_DIR
@handle_user_errors
def fetch(dataset: str, data_dir: str | None) -> None:
    folder = _data_dir(data_dir)
    from cifar10_accel.data import download
    from cifar10_accel.data.cifar_files import CIFAR_FILES

    official = CIFAR_FILES[dataset]
    download.fetch(official, folder)
    click.echo(f"{official.title} is in {folder}")


@data.command(help="Check every file against its published digest.")
@DATASET
@DATA_DIR
@handle_user_errors
def verify(dataset: str, data_dir: str | None) -> None:
    from cifar10_accel.data.cifar_files import CIFAR_FILES

    for path, state in CIFAR_FILES[dataset].verify(_data_dir(data_dir)):
        click.echo(f"{path}: {state}")


@data.command(
    cls=SettingsCommand,
    help="Draw training images as the model gets them. One row per image, one column per epoch.",
)
@click.option(
    "--epoch", "shown_epochs", type=click.IntRange(min=0), multiple=True, help="epochs to show  [default: 0 to 7]"
)
@click.option(
    "--index", "shown_indices", type=click.IntRange(min=0), multiple=True, help="training images  [default: 0 to 7]"
)
@click.option("--compare", is_flag=True, help="show both augmentation backends, image by image")
@click.option("--out", type=OUT, default=Path("preview.png"), show_default=True)
@settings_options
@handle_user_errors
def preview(
    shown_epochs: tuple[int, ...], shown_indices: tuple[int, ...], compare: bool, out: Path, **flags: Any
) -> None:
    settings = Settings(**flags)
    announce_loading()
    from cifar10_accel.commands import preview as command

    epochs, indices = shown_epochs or tuple(range(8)), shown_indices or tuple(range(8))
    command.preview(settings, epochs=epochs, indices=indices, compare=compare, path=out)
    click.echo(f"{out}")


def _data_dir(given: str | None) -> Path:
    return Settings(**({} if given is None else {"data_dir": given})).data_dir
