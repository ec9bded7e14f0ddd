"""The `command:` of a sweep file: W&B's agent must start the same trial with it as a local sweep does.

A local sweep runs `python -m cifar10_accel.train --NAME=VALUE ...`. W&B's agent runs the items of `command:` and puts
the words of a macro like `${args}` in its place; a macro that it does not know it leaves out without a word.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.files import read_yaml

MODULE = "cifar10_accel.train"
EXAMPLE = '["${env}", "${interpreter}", "-m", "cifar10_accel.train", "${args}"]'
DEFAULT = ["${env}", "${interpreter}", "${program}", "${args}"]  # W&B's, for a file without `command:`

# Macros for the parameters as this program reads them: --x=VALUE; --x VALUE; --x for true and nothing for false.
FLAG_MACROS = ("args", "args_no_equals", "args_no_boolean_flags")
OTHER_MACROS = ("env", "interpreter", "program")
# W&B's other macros for the parameters, and the words that it would put in their place.
NO_FLAGS = {
    "args_no_hyphens": "words like max_lr=0.1",
    "args_json": "one word of JSON",
    "args_json_file": "the path of a JSON file",
    "args_dict": "the names alone",
    "args_append_hydra": "words like +max_lr=0.1",
    "args_override_hydra": "words like ++max_lr=0.1",
}
MACRO = re.compile(r"\$\{([^{}]*)\}")
VARIABLE = re.compile(r"envvar:[A-Z0-9_]*")  # replaced anywhere in a word
# Flags of launchers (and keys of their files) that change the training: the value that does not, and the setting.
LAUNCH_FLAGS = {
    "mixed_precision": ("no", "precision"),
    "gradient_accumulation_steps": ("1", "grad_accum_steps"),
    "dynamo_backend": ("no", "compile"),
}


def check_command(values: Mapping[str, Any], *, names: Collection[str], with_false: str | None) -> None:
    """Require that W&B's agent starts the trials that a local sweep starts.

    A file with neither `command:` nor `program:` is for local sweeps only.

    Args:
        values: The whole sweep file.
        names: Its parameters.
        with_false: A parameter that may be false; None if there is none.

    Raises:
        SettingsError: One line with the item of the command and what to write instead.
    """
    command = values.get("command")
    if not isinstance(command, list | None):
        raise SettingsError(f"command: {command!r} is no list, which W&B's agent ignores; give {EXAMPLE}")
    if not command and "program" not in values:
        return
    words = [str(word) for word in command or DEFAULT]
    for word in words:
        _check_macros(word, with_false=with_false)
    start, end = _find_program(words, values.get("program"))
    _check_launch(words[:start], names)
    _check_arguments(words[end:])


def _check_macros(word: str, *, with_false: str | None) -> None:
    for match in MACRO.finditer(word):
        macro = match[1]
        if VARIABLE.fullmatch(macro):
            continue
        if macro in NO_FLAGS:
            raise SettingsError(
                f"command: W&B's agent replaces {match[0]} by {NO_FLAGS[macro]}, which is no flag; give ${{args}}"
            )
        if macro not in FLAG_MACROS + OTHER_MACROS:
            hint = did_you_mean(macro, [*FLAG_MACROS, *OTHER_MACROS])
            raise SettingsError(f"command: W&B's agent would leave out {match[0]}{hint}; give ${{args}}")
        if match[0] != word:
            raise SettingsError(
                f"command: W&B's agent passes {word!r} on as it is; give {match[0]} as an item of its own"
            )
        if macro == "args_no_boolean_flags" and with_false is not None:
            raise SettingsError(
                f"command: W&B's agent leaves {with_false} out of {match[0]} where it is false; give ${{args}}"
            )


def _find_program(words: Sequence[str], program: Any) -> tuple[int, int]:
    """Return the range of the words that name this package's training."""
    for start, word in enumerate(words):
        after = words[start + 1 : start + 3]
        if word in ("-m", "--module") and after[:1] == [MODULE]:
            return start, start + 2
        if word in ("-m", "--module") and after == ["cifar10_accel", "train"]:
            return start, start + 3
        if Path(word).name == "cifar10-accel" and after[:1] == ["train"]:
            return start, start + 2
        if word == "${program}" and program is None:
            raise SettingsError("command: ${program} needs the key program; give `program: cifar10_accel/train.py`")
        if _is_training_file(str(program) if word == "${program}" else word):
            return start, start + 1
    started = f"{program} " if "${program}" in words else ""
    raise SettingsError(f"command: W&B's agent would start another program {started}than a local sweep; give {EXAMPLE}")


def _is_training_file(word: str) -> bool:
    return Path(word).parts[-2:] == ("cifar10_accel", "train.py")


def _check_launch(words: Sequence[str], names: Collection[str]) -> None:
    """Refuse what stands before the program and changes its training: environment variables and launcher flags."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        macro = MACRO.fullmatch(word)
        if macro and macro[1] in FLAG_MACROS:
            raise SettingsError(f"command: {word} comes before the program; give it as the last item")
        flag, equals, value = word.partition("=")
        if equals and flag.startswith(("CIFAR10_ACCEL_", "ACCELERATE_")):
            raise SettingsError(
                f"command: {word!r} would not reach a local run; give the setting as a parameter with `value:`"
            )
        flag = flag.lstrip("-").replace("-", "_")
        if word.startswith("--"):
            _check_launch_value(flag, value if equals else following, word, names)
        if flag == "config_file" and Path(value if equals else following).is_file():
            file = Path(value if equals else following)
            for key, given in read_yaml(file).items():
                _check_launch_value(key, given, f"{key} in {file}", names)


def _check_launch_value(flag: str, value: Any, place: str, names: Collection[str]) -> None:
    if flag not in LAUNCH_FLAGS:
        return
    neutral, setting = LAUNCH_FLAGS[flag]
    given = "no" if value is False else str(value).lower()  # YAML reads a bare no as false
    if given != neutral and not (setting == "precision" and setting in names):
        raise SettingsError(
            f"command: {place} ({value}) would not reach a local run; give {setting} as a parameter with `value:`"
        )


def _check_arguments(words: Sequence[str]) -> None:
    """Require the parameters after the program, and nothing else."""
    macros = [f"${{{macro}}}" for macro in FLAG_MACROS]
    for word in words:
        if word not in macros:
            raise SettingsError(f"command: {word!r} would not reach a local run; give it as a parameter with `value:`")
    if not words:
        raise SettingsError("command: W&B's agent would pass no parameter on; give ${args} as the last item")
