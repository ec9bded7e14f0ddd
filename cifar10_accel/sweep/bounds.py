"""Puts the bounds that an LR range test found into a sweep file; everything else in it stays, comments too."""

from pathlib import Path

import yaml

from cifar10_accel.errors import SettingsError
from cifar10_accel.sweep.file import read_sweep
from cifar10_accel.sweep.spaces import Interval

LARGEST_LR = 1000.0  # of the setting max_lr


def require_max_lr_bounds(path: Path) -> None:
    """Raises `SettingsError` if the file is no sweep that could be run, or its max_lr has no min and max to replace."""
    if not isinstance(read_sweep(path).searched.get("max_lr"), Interval):
        raise SettingsError(f"{path}: max_lr has no `min:` and `max:` to write to; give it a log_uniform_values range")
    _places(path, _text(path))


def write_found(path: Path, *, steepest: float | None, lowest: float) -> str:
    """Writes the bounds that a range test suggests, if it does, and returns the line that says so.

    steepest: the LR at which the loss falls fastest, None without a suggestion; lowest: where it is lowest.
    """
    if steepest is None:
        return f"{path} is left as it was"
    low, high = bounds_around(steepest=steepest, lowest=lowest)
    write_max_lr_bounds(path, low, high)
    return f"{path}: max_lr from {_number(low)} to {_number(high)}"


def bounds_around(*, steepest: float, lowest: float) -> tuple[float, float]:
    """The range of max LRs worth searching: from a third of where the loss falls fastest to where it is lowest.

    A one-cycle holds its peak for a moment only, so a good peak is far above the LR that learns fastest all
    along, but not above the one with the lowest loss, which the test's running mean already shows too high.
    """
    return steepest / 3, min(lowest, LARGEST_LR)


def write_max_lr_bounds(path: Path, low: float, high: float) -> None:
    """Replaces min and max of max_lr in the file, all other characters kept; `SettingsError` if that cannot be."""
    text = _text(path)
    for (start, end), value in sorted(zip(_places(path, text), (low, high), strict=True), reverse=True):
        text = text[:start] + _number(value) + text[end:]
    aside = path.with_name(f"{path.name}.tmp")
    try:
        aside.write_bytes(text.encode())
        found = read_sweep(aside).searched["max_lr"]
        assert isinstance(found, Interval)
        assert (found.low, found.high) == (float(_number(low)), float(_number(high)))
        aside.replace(path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        aside.unlink(missing_ok=True)


def _places(path: Path, text: str) -> list[tuple[int, int]]:
    """Where the numbers of min and max stand: first and last character, counted in the text."""
    values = _values(_values(_values(yaml.compose(text)).get("parameters")).get("max_lr"))
    if "distribution" in values and values["distribution"].value in ("log_uniform", "q_log_uniform"):
        raise SettingsError(f"{path}: max_lr is log_uniform, whose bounds are exponents; give log_uniform_values")
    return [(values[key].start_mark.index, values[key].end_mark.index) for key in ("min", "max")]


def _text(path: Path) -> str:
    """The characters of the file as they are: reading it as text would change its line ends."""
    return path.read_bytes().decode("utf-8")


def _values(node: yaml.Node | None) -> dict[str, yaml.Node]:
    assert isinstance(node, yaml.MappingNode)
    return {key.value: value for key, value in node.value}


def _number(value: float) -> str:
    """Two digits, with the point without which YAML takes 1e-05 for text."""
    word = f"{value:.2g}"
    return word.replace("e", ".0e") if "e" in word and "." not in word else word
