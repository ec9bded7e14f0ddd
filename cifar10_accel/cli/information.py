"""Commands that describe what the package has: models, recipes."""

from typing import Any

import click

from cifar10_accel.cli.flags import WIDE_HELP, handle_user_errors, settings_options
from cifar10_accel.recipes import recipe_names, recipe_path
from cifar10_accel.settings import Settings


@click.command(context_settings=WIDE_HELP)
@settings_options
@handle_user_errors
def models(**flags: Any) -> None:
    """Describe all models, and the one of --model layer by layer: parameters, FLOPs per image, receptive field."""
    settings = Settings(**flags)
    from rich.console import Console

    from cifar10_accel.models.summary import layers_table, models_table

    console = Console(highlight=False)
    console.print(layers_table(settings, num_classes=10))
    console.print(models_table(settings, num_classes=10))


@click.command()
@handle_user_errors
def recipes() -> None:
    """List the recipes that come with the package."""
    for name in recipe_names():
        comment = [line for line in recipe_path(name).read_text().splitlines() if line.startswith("#")]
        click.secho(name, bold=True)
        for line in comment:
            click.echo(f"  {line.removeprefix('# ')}")
