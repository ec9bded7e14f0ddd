"""Types of command-line parameters: paths, and values of settings that the shell can complete."""

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo

from cifar10_accel.files import recordable_path, user_path
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import built_in_names
from cifar10_accel.settings.section import Duration


class UserPath(click.Path):
    """A path as a `Path`; `~` is the home folder also where the shell does not expand it, as in `--out=~/x`.

    Args:
        is_output: Whether the command writes there, which many libraries can only if the path is UTF-8.
    """

    def __init__(self, *, is_output: bool = False) -> None:
        super().__init__(path_type=Path)
        self._checked = recordable_path if is_output else user_path

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(self._checked(value), param, ctx)
        except ValueError as error:
            self.fail(f"{str(value)!r} {error}", param, ctx)


PATH = UserPath()
OUT = UserPath(is_output=True)


class SettingValue(click.ParamType[str]):
    """The value of a setting as text, which `Settings` alone checks.

    Args:
        name: Of the setting.
        field: Of the setting.
    """

    def __init__(self, name: str, field: FieldInfo) -> None:
        kinds = _alternatives(field.annotation)
        literals = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
        self.name = next((_METAVARS[kind] for kind in kinds if kind in _METAVARS), "TEXT")
        self.choices = built_in_names(field) or literals
        self.takes_several = any(get_origin(kind) is tuple for kind in kinds)
        self.is_path = Path in kinds or name == "recipe"
        if field.annotation is bool:
            self.choices = ["true", "false"]
        if name == "recipe":
            self.choices = ["auto", *recipe_names()]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the choices that begin with what is typed; files for a path."""
        before, comma, last = incomplete.rpartition(",") if self.takes_several else ("", "", incomplete)
        found = [CompletionItem(f"{before}{comma}{choice}") for choice in self.choices if choice.startswith(last)]
        return found or ([CompletionItem(incomplete, type="file")] if self.is_path else [])


_METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", Path: "PATH", Duration: "DURATION"}


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types of which a setting takes one."""
    if get_origin(annotation) is Annotated and annotation != Duration:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for alternative in get_args(annotation) for kind in _alternatives(alternative)]
    return [annotation]
