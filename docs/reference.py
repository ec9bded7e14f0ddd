"""Sphinx extension: generates the pages of settings, command line and recipes from the sources."""

from collections.abc import Callable, Iterator
from typing import Any

import click
from pydantic_settings import BaseSettings
from sphinx.application import Sphinx

from cifar10_accel.cli import main
from cifar10_accel.cli.help import section_title
from cifar10_accel.formatting import format_value
from cifar10_accel.recipes import recipe_names, recipe_path
from cifar10_accel.settings import Settings


def settings() -> str:
    """Return every setting under its section: allowed values, default, description."""
    properties = Settings.model_json_schema()["properties"]
    lines = ["## Recipe", "", "The source of values that are not given.", "", *_setting("recipe", properties)]
    for section in reversed([base for base in Settings.__bases__ if not issubclass(base, BaseSettings)]):
        lines += [f"## {section_title(section)}", "", section.__doc__ or "", ""]
        for name in section.model_fields:
            lines += _setting(name, properties)
    return "\n".join(lines)


def commands() -> str:
    """Return every command with its arguments and options, without those that are settings."""
    return "\n".join(line for path, command in _leaves(main, ["cifar10-accel"]) for line in _command(path, command))


def recipes() -> str:
    """Return every recipe: its command, its comment, and its values."""
    lines = []
    for name in recipe_names():
        text = recipe_path(name).read_text()
        first, *comment = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
        values = [line for line in text.splitlines() if not line.startswith("#")]
        command = first.replace(" -m ", " \\\n    -m ")
        lines += [f"## {name}", "", " ".join(comment), "", *_block("sh", [command]), *_block("yaml", values)]
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {"settings": settings, "commands": commands, "recipes": recipes}


def _block(language: str, lines: list[str]) -> list[str]:
    return [f"```{language}", *lines, "```", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; Sphinx calls this."""
    app.connect("source-read", _fill_in)
    # Before and after sphinx.ext.napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _hide_colon, priority=400)
    app.connect("autodoc-process-docstring", _show_colon, priority=600)
    return {"parallel_read_safe": True}


def _fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    for name, write in PARTS.items():
        source[0] = source[0].replace(f"<!-- generated here: {name} -->", write())


def _hide_colon(app: Sphinx, what: str, name: str, documented: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading the first line of a property, `Something: more about it`, as `type: description`."""
    if what == "property":
        lines[0] = lines[0].replace(": ", ":: ")


def _show_colon(app: Sphinx, what: str, name: str, documented: object, options: object, lines: list[str]) -> None:
    if what == "property":
        lines[:] = [line.replace(":: ", ": ") for line in lines]


def _setting(name: str, properties: dict[str, Any]) -> list[str]:
    field = Settings.model_fields[name]
    return [
        f"```{{confval}} {name}",
        f":type: {_allowed(properties[name])}",
        f":default: `{format_value(field.default)}`",
        "",
        f"{field.description}",
        "```",
        "",
    ]


def _allowed(schema: dict[str, Any]) -> str:
    """Return the allowed values of a JSON schema as text."""
    if "built_in" in schema:
        names = ", ".join(f"`{name}`" for name in schema["built_in"])
        is_list = schema["type"] == "array"
        return f"`none`, or any of {names}, or import paths" if is_list else f"{names}, or an import path"
    if "anyOf" in schema:
        return ", or ".join(_allowed(form) for form in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"`none`, or any of {_allowed(schema['items'])}"
    if schema["type"] in ("integer", "number"):
        return ", ".join([schema["type"], *_bounds(schema)])
    return {"null": "`none`", "boolean": "`true`, `false`"}.get(schema["type"], schema.get("format", "text"))


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    texts = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    for key, text in texts.items():
        if key in schema:
            is_whole = schema[key] == int(schema[key])
            yield f"{text} {int(schema[key]):,}" if is_whole else f"{text} {schema[key]:g}"


def _leaves(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name in sorted(command.commands):
        if not command.commands[name].hidden:
            yield from _leaves(command.commands[name], [*path, name])


def _command(path: list[str], command: click.Command) -> Iterator[str]:
    name, context = " ".join(path), click.Context(command)
    own = [param for param in command.params if not _is_setting(param)]
    takes_settings = len(own) < len(command.params) - 10  # some commands have a few options of the same name
    params = own if takes_settings else command.params
    arguments = [param.make_metavar(context) for param in params if isinstance(param, click.Argument)]
    yield from [f"## {' '.join(path[1:])}", "", command.help or "", ""]
    usage = [name, *arguments, "[OPTIONS]", *(["[SETTINGS]"] if takes_settings else [])]
    yield from ["```text", " ".join(usage), "```", "", f"```{{program}} {name}", "```", ""]
    for param in params:
        if isinstance(param, click.Option) and param.name != "help_all":
            yield from _option(param, context)
    if takes_settings:
        yield from ["Every [setting](settings.md) is an option too.", ""]


def _option(option: click.Option, context: click.Context) -> Iterator[str]:
    metavar = "" if option.is_flag else " " + option.make_metavar(context).removesuffix(" RANGE")
    text, default = option.help or "", option.get_default(context)
    if option.show_default and default is not None:
        text += f"  [default: {default}]"
    yield from [f"```{{option}} {option.opts[0]}{metavar}", "", text, "```", ""]


def _is_setting(param: click.Parameter) -> bool:
    return param.name is not None and param.name.removeprefix("not__") in Settings.model_fields
