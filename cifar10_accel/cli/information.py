"""Commands about what the package has: models, recipes, launch-config."""

import shlex
from pathlib import Path
from typing import Any

import click

import cifar10_accel.commands
from cifar10_accel.cli.flags import announce_loading, handle_user_errors, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.cli.parameters import OUT
from cifar10_accel.errors import SettingsError
from cifar10_accel.recipes import recipe_names, recipe_path
from cifar10_accel.settings import Settings


@click.command(
    cls=SettingsCommand,
    help="Describe the models. The one of --model layer by layer: parameters, FLOPs per image, receptive field. "
    "For other images than those of CIFAR give --image-size, --channels and --classes.",
)
@settings_options
@click.option("--channels", type=click.IntRange(1, 16), default=3, show_default=True, help="channels of the images")
@click.option("--classes", type=click.IntRange(2), default=10, show_default=True, help="number of logits")
@handle_user_errors
def models(channels: int, classes: int, **flags: Any) -> None:
    settings = Settings(**flags)
    announce_loading()
    from cifar10_accel.data.image_format import CIFAR10_IMAGES, ImageFormat
    from cifar10_accel.models.summary import layers_table, models_table
    from cifar10_accel.tracking.console import LiteralConsole

    console = LiteralConsole()
    size = settings.image_size or CIFAR10_IMAGES.size
    images = ImageFormat(size, channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    console.print(layers_table(settings, num_classes=classes, image_format=images))
    console.print(models_table(settings, num_classes=classes, image_format=images))


@click.command(help="List the recipes that come with the package.")
@handle_user_errors
def recipes() -> None:
    for name in recipe_names():
        comment = [line for line in recipe_path(name).read_text().splitlines() if line.startswith("#")]
        click.secho(name, bold=True)
        for line in comment:
            click.echo(f"  {line.removeprefix('# ')}")


@click.command(
    "launch-config",
    help="Write a configuration for accelerate launch. It is for one process on this machine's GPU or CPU, whatever "
    "`accelerate config` has made the default; flags of the launcher win over it, and its comments list them.",
)
@click.argument("file", type=OUT, default=Path("accelerate_config.yaml"))
@handle_user_errors
def launch_config(file: Path) -> None:
    text = (Path(cifar10_accel.commands.__path__[0]) / "accelerate_config.yaml").read_text()
    try:
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError:
        if not file.is_file() or file.read_text() != text:
            raise SettingsError(f"{file}: exists and is another file; give the name of a new one") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be written ({error.strerror}); give another path") from None
    click.echo(f"accelerate launch --config_file {shlex.quote(str(file))} -m cifar10_accel.train")
