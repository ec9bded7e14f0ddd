"""Command-line flags made from the settings, and the exit codes of user errors.

`--max-lr` and `--max_lr` are the same flag, and booleans take `--x`, `--no-x` and `--x=true` (a W&B
agent sends `--x=True`). Values are checked in one place, by the settings themselves.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from cifar10_accel.errors import Preempted, UserError
from cifar10_accel.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
WIDE = {"max_content_width": 120}  # context settings of a command whose help has one line per setting
NEGATED = "not__"  # prefix of the parameter behind a --no-x flag


def settings_flags(command: Callable[..., R]) -> Callable[..., R]:
    """Decorator: one flag per setting; the command gets those that were given, as keywords."""

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


def exits_with_one_line(command: Callable[P, R]) -> Callable[P, R]:
    """Decorator: a `UserError` becomes its line on stderr and its exit code, never a traceback."""

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


def is_main_rank() -> bool:
    """Whether this process speaks for all: rank 0 of a launch, or the only one. Known before any launch is joined."""
    return os.environ.get("RANK", "0") == "0"


def _options(name: str, field: FieldInfo) -> list[Callable[..., Any]]:
    dashed = name.replace("_", "-")
    names = list(dict.fromkeys([f"--{dashed}", f"--{name}"]))
    text = f"{field.description}  [default: {as_typed(field.default)}]"
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


def as_typed(default: Any) -> str:
    """A default as one would type it."""
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, float):
        return f"{default:g}"
    return "none" if default is None else str(default).lower()
