"""Command-line flags made from the settings, and the exit codes of user errors.

`--max-lr` and `--max_lr` are the same flag, and booleans take `--x`, `--no-x` and `--x=true` (a W&B agent sends
`--x=True`). Values are checked by `Settings` alone.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from cifar10_accel.errors import Preempted, SettingsError, UserError
from cifar10_accel.formatting import format_value
from cifar10_accel.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
WIDE_HELP = {"max_content_width": 120}  # context settings of a command whose help has one line per setting
NEGATED = "not__"  # prefix of the parameter behind a --no-x flag


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
    """Decorator that turns a `UserError` into its message on stderr and its exit code, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except Preempted as stop:
            if is_main_rank():
                click.secho(str(stop), fg="yellow", err=True)
            sys.exit(stop.exit_code)
        except UserError as error:
            if is_main_rank() or not error.is_shared:
                for line in str(error).splitlines():
                    click.secho(f"error: {line}", fg="red", err=True)
            sys.exit(error.exit_code)

    return guarded


def require_installed(library: str, *, command: str, extra: str) -> None:
    """Raise `SettingsError` unless a library that only one command needs is installed."""
    if importlib.util.find_spec(library) is None:
        raise SettingsError(f"{command}: {library} is not installed; pip install 'cifar10-accel[{extra}]'")


def is_main_rank() -> bool:
    """Return whether this process is rank 0, by its environment; known before torch.distributed is initialized."""
    return os.environ.get("RANK", "0") == "0"


def _options(name: str, field: FieldInfo) -> list[Callable[..., Any]]:
    dashed = name.replace("_", "-")
    names = list(dict.fromkeys([f"--{dashed}", f"--{name}"]))
    text = f"{field.description}  [default: {format_value(field.default)}]"
    if field.annotation is not bool:
        return [click.option(*names, name, metavar=_metavar(field), help=text)]
    negations = list(dict.fromkeys([f"--no-{dashed}", f"--no_{name}"]))
    return [
        click.option(*names, name, is_flag=False, flag_value="true", metavar="[true|false]", help=text),
        click.option(*negations, NEGATED + name, is_flag=True, hidden=True),
    ]


def _metavar(field: FieldInfo) -> str:
    choices = [arg for arg in (field.annotation, *get_args(field.annotation)) if get_origin(arg) is Literal]
    if choices and not field.metadata:
        return "|".join(get_args(choices[0]))
    kinds = [arg for arg in (field.annotation, *get_args(field.annotation)) if isinstance(arg, type)]
    return {int: "INT", float: "FLOAT"}.get(kinds[0], "TEXT") if kinds else "TEXT"
