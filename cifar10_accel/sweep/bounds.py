"""Write the max_lr bounds found by an LR range test into a sweep file; all other characters, comments too, stay."""

from pathlib import Path

import yaml

from cifar10_accel.errors import SettingsError
from cifar10_accel.files import write_text
from cifar10_accel.sweep.file import read_sweep
from cifar10_accel.sweep.spaces import Interval

LARGEST_LR = 1000.0  # upper bound of the setting max_lr


def require_max_lr_bounds(path: Path) -> None:
    """Raise `SettingsError` if the file is no valid sweep, or its max_lr has no min and max to replace."""
    if not isinstance(read_sweep(path).searched.get("max_lr"), Interval):
        raise SettingsError(f"{path}: max_lr has no `min:` and `max:` to write to; give it a log_uniform_values range")
    _bound_positions(path, _read(path))


def bounds_around(*, steepest: float, lowest: float) -> tuple[float, float]:
    """Return the range of max LRs worth searching.

    A one-cycle holds its peak only for a moment, so a good peak is far above the LR at which the loss falls fastest,
    but not above the LR with the lowest loss, which the running mean of the range test already puts too high.

    Args:
        steepest: LR at which the loss falls fastest; the range starts at a third of it.
        lowest: LR with the lowest loss; the range ends there.
    """
    return steepest / 3, min(lowest, LARGEST_LR)


def write_max_lr_bounds(path: Path, *, steepest: float, lowest: float) -> tuple[str, str]:
    """Replace min and max of max_lr in a sweep file by `bounds_around(...)`; return both as written.

    Raises:
        SettingsError: The file has no such bounds or cannot be written.
    """
    text = _read(path)
    low, high = map(_format_number, bounds_around(steepest=steepest, lowest=lowest))
    # From the back: replacing one number must not move the other.
    for (start, end), number in sorted(zip(_bound_positions(path, text), (low, high), strict=True), reverse=True):
        text = text[:start] + number + text[end:]
    try:
        write_text(path, text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror})") from None
    return low, high


def _bound_positions(path: Path, text: str) -> list[tuple[int, int]]:
    """Return start and end offset of the numbers of min and max in the text."""
    node = yaml.compose(text)
    for key in ("parameters", "max_lr"):
        node = _values(node)[key]
    values = _values(node)
    if "distribution" in values and values["distribution"].value in ("log_uniform", "q_log_uniform"):
        raise SettingsError(f"{path}: max_lr is log_uniform, whose bounds are exponents; give log_uniform_values")
    return [(values[key].start_mark.index, values[key].end_mark.index) for key in ("min", "max")]


def _values(node: yaml.Node | None) -> dict[str, yaml.Node]:
    assert isinstance(node, yaml.MappingNode)
    return {key.value: value for key, value in node.value}


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")  # not read_text, which would change line ends


def _format_number(value: float) -> str:
    """Return the number with two digits; YAML reads an exponent without a decimal point, 1e-05, as text."""
    text = f"{value:.2g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
