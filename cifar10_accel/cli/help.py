"""Layout of `--help`: commands by use, settings by section; and the answers to names that other programs have."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import click
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from cifar10_accel.errors import synonym_of, why_no_setting
from cifar10_accel.settings import Settings

# Shown by `train --help`, in this order; `train --help-all` describes all.
COMMON = (
    "recipe",
    "dataset",
    "data_dir",
    "val_size",
    "model",
    "epochs",
    "batch_size",
    "max_lr",
    "weight_decay",
    "optimizer",
    "seed",
    "precision",
    "compile",
    "tta",
    "run_name",
    "run_dir",
    "tracker",
)
SHOWS_ALL = "cifar10_accel.shows_all"  # key in click's context


def sections() -> dict[str, list[str]]:
    """Return the titles of the sections of the settings, and the names of the settings in each."""
    classes = [
        base for base in Settings.__bases__ if issubclass(base, BaseModel) and not issubclass(base, BaseSettings)
    ]
    by_title = {section_title(kind): list(kind.model_fields) for kind in reversed(classes)}
    listed = {name for names in by_title.values() for name in names}
    return {"Recipe": [name for name in Settings.model_fields if name not in listed], **by_title}


class CommandGroup(click.Group):
    """A group whose `--help` lists its commands by use, each with its first sentence.

    Args:
        by_use: Names of commands under the title of their use, in the order of the list.
        attributes: Of `click.Group`.
    """

    def __init__(self, *, by_use: Mapping[str, Sequence[str]], **attributes: Any) -> None:
        super().__init__(**attributes)
        self._by_use = by_use

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in columns of equal width."""
        width = max(len(name) for names in self._by_use.values() for name in names)
        for title, names in self._by_use.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", _first_sentence(self.commands[name])) for name in names])


class SettingsCommand(click.Command):
    """A command that takes settings as flags (`settings_options`): `--help` shows the common ones, `--help-all` all."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.context_settings.setdefault("token_normalize_func", with_dashes)
        text = "Describe all settings and exit."
        show_all = click.Option(
            ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help=text
        )
        self.params.append(show_all)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; `--model-args.depth=3` is a value of its own, and a name of other programs an answer."""
        dotted, rest = _split_dotted(args)
        try:
            remaining = super().parse_args(ctx, list(rest))  # which empties the list
        except click.NoSuchOption as error:
            given = next((arg for arg in rest if arg.startswith(error.option_name)), error.option_name)
            raise _explained(error, given.partition("=")[0]) from None
        ctx.params.update(dotted)
        return remaining

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the settings."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        own = [param for param in self.get_params(ctx) if param.name not in Settings.model_fields]
        self._write(formatter, "Options", [records[param.name] for param in own if isinstance(param, click.Option)])
        if ctx.meta.get(SHOWS_ALL):
            for title, names in sections().items():
                self._write(formatter, f"{title} settings", [records[name] for name in names])
            return
        self._write(formatter, "Common settings", [records[name] for name in COMMON])
        with formatter.section("More settings, which --help-all describes"):
            for title, names in sections().items():
                rest = " ".join(f"--{with_dashes(name)}" for name in names if name not in COMMON)
                lines = textwrap.wrap(rest, formatter.width - 16, break_on_hyphens=False, break_long_words=False)
                for first, line in zip([title, *[""] * len(lines)], lines, strict=False):
                    formatter.write(f"  {first:12}  {line}\n")

    def _write(self, formatter: click.HelpFormatter, title: str, records: Sequence[tuple[str, str] | None]) -> None:
        with formatter.section(title):
            formatter.write_dl([record for record in records if record is not None], col_max=24)


def with_dashes(name: str) -> str:
    """Return the name of a flag or command as `--help` shows it: `max-lr` for `max_lr`."""
    return name.replace("_", "-")


def section_title(section: type) -> str:
    """Return the title of a section of the settings by the name of its class: `Fine tuning` for FineTuningSettings."""
    return re.sub(
        "(?<=[a-z])[A-Z]", lambda capital: f" {capital[0].lower()}", section.__name__.removesuffix("Settings")
    )


def _first_sentence(command: click.Command) -> str:
    first, *rest = (command.help or "").split(". ")
    return f"{first}." if rest else first


def _show_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[SHOWS_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _split_dotted(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take the flags with a dot, such as --model-args.depth=3, out of the arguments.

    Returns:
        Their values by `model_args.depth`, and the other arguments.
    """
    dotted, rest, remaining = dict[str, str](), list[str](), iter(args)
    for arg in remaining:
        name, equals, value = arg.partition("=")
        setting, dot, key = name.removeprefix("--").partition(".")
        if name.startswith("--") and dot and setting.replace("-", "_") in Settings.model_fields:
            dotted[f"{setting.replace('-', '_')}.{key}"] = value if equals else next(remaining, "")
        else:
            rest.append(arg)
    return dotted, rest


def _explained(error: click.NoSuchOption, flag: str) -> click.UsageError:
    """Return the error with the flag that is meant by one of other programs, or with the place of the thing."""
    word = flag.lstrip("-")
    name, equals, value = synonym_of(word, Settings.model_fields).partition("=")
    hint = f" (did you mean --{with_dashes(name)}{equals}{value}?)" if name else why_no_setting(word, ())
    return click.NoSuchOption(flag, f"No such option '{flag}'{hint}", ctx=error.ctx) if hint else error
