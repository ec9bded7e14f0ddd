"""Command-line flags made from the settings, and the exit codes of user errors.

`--max-lr` and `--max_lr` are the same flag, and booleans take `--x`, `--no-x` and `--x=true` (a W&B agent sends
`--x=True`). Values are checked by `Settings` alone.
"""

import functools
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click
from pydantic.fields import FieldInfo

from cifar10_accel.cli.parameters import SettingValue
from cifar10_accel.errors import Preempted, SettingsError, UserError
from cifar10_accel.formatting import format_value
from cifar10_accel.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
NEGATED = "not__"  # prefix of the parameter behind a --no-x flag
MAX_CHOICES = 36  # characters of the choices that are shown in the first column of --help


def settings_options(command: Callable[..., R]) -> Callable[..., R]:
    """Decorator that adds one flag per setting; the command gets the given ones as keyword arguments."""

    names = set(Settings.model_fields)

    @functools.wraps(command)
    def with_given(**values: Any) -> R:
        given = {name: value for name, value in values.items() if name not in names or value is not None}
        negated = [name for name in names if given.pop(NEGATED + name, False)]
        return command(**given | dict.fromkeys(negated, "false"))

    decorated: Callable[..., R] = with_given
    for name, field in reversed(Settings.model_fields.items()):
        for option in reversed(_options(name, field)):
            decorated = option(decorated)
    return decorated


def handle_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorator that turns a `UserError` and Ctrl-C into a message on stderr and an exit code, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except Preempted as stop:
            if is_main_rank():
                click.secho(str(stop), fg="yellow", err=True)
            sys.exit(stop.exit_code)
        except UserError as error:
            if _is_first_of_machine() or not error.is_shared:
                for line in str(error).splitlines():
                    click.secho(f"error: {line}", fg="red", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:  # outside the training loop, which saves first
            if is_main_rank():
                click.secho("stopped by Ctrl-C", fg="yellow", err=True)
            sys.exit(128 + signal.SIGINT)
        except RuntimeError as error:
            lost = _lost_peer(error)
            if lost is None:
                raise
            click.secho(f"error: {lost}", fg="red", err=True)
            sys.exit(lost.exit_code)

    return guarded


def _lost_peer(error: RuntimeError) -> UserError | None:
    """Return an error of the communication between processes in one line; None if it is another error."""
    if "torch.distributed" not in sys.modules:
        return None
    from cifar10_accel.training.launch.joining import current_launch
    from cifar10_accel.training.launch.lost_peer import is_lost_peer, report_lost_peer

    return report_lost_peer(error, current_launch()) if is_lost_peer(error) else None


def _is_first_of_machine() -> bool:
    """Return True for the first process of each machine, whose launcher may have a terminal of its own."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def require_installed(library: str, *, command: str, extra: str) -> None:
    """Raise `SettingsError` unless a library that only one command needs is installed."""
    if importlib.util.find_spec(library) is None:
        raise SettingsError(f"{command}: {library} is not installed; pip install 'cifar10-accel[{extra}]'")


def announce_loading() -> None:
    """Say on a terminal that PyTorch is imported next, which takes some seconds."""
    if is_main_rank() and sys.stderr.isatty():
        click.echo("loading PyTorch ...", err=True)


def is_main_rank() -> bool:
    """Return whether this process is rank 0, by its environment; known before torch.distributed is initialized."""
    return os.environ.get("RANK", "0") == "0"


def setting_option(name: str, text: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that adds the flag of one setting, with a help text of its own, to a command without the others."""
    field = Settings.model_fields[name]
    value = SettingValue(name, field)
    return click.option(f"--{name.replace('_', '-')}", name, type=value, metavar=_metavar(value), help=text)


def _options(name: str, field: FieldInfo) -> list[Callable[..., Any]]:
    dashed, value, text = name.replace("_", "-"), SettingValue(name, field), str(field.description)
    default = f"  [default: {format_value(field.default)}]"
    if field.annotation is bool:
        flag = click.option(
            f"--{dashed}", name, is_flag=False, flag_value="true", type=value, metavar="BOOL", help=text + default
        )
        return [flag, click.option(f"--no-{dashed}", NEGATED + name, is_flag=True, hidden=True)]
    metavar = _metavar(value)
    if metavar != "|".join(value.choices) and not all(choice in text for choice in value.choices):
        text += f" [{', '.join(value.choices)}]"
    return [click.option(f"--{dashed}", name, type=value, metavar=metavar, help=text + default)]


def _metavar(value: SettingValue) -> str:
    choices = "|".join(value.choices)
    return choices if 0 < len(choices) <= MAX_CHOICES else value.name
