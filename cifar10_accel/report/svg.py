"""Building blocks of SVG charts: escaped tags, scales from values to coordinates, number formats."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

MOST_TICKS = 6  # on an axis, about
Kind = Literal["linear", "log", "category"]
Format = Callable[[float | None], str]

# From dark to light by equal steps of perceived lightness, blue to yellow, so that the order is
# visible without hue (computed in OKLCH: lightness 0.30 to 0.90, hue 300 to 105).
COLOURS = ("#3a1463", "#313584", "#03569a", "#057597", "#01929b", "#01af97", "#64c687", "#abd679", "#ebe377")


def tag(name: str, *content: str, **attributes: float | str | None) -> Markup:
    """Return an element; content and attribute values are escaped unless they are Markup.

    `class_` is class, other underscores are hyphens; None leaves an attribute out.
    """
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name == "input":  # has no end tag
        return Markup(f"<{name}{rendered}>")
    return Markup(f"<{name}{rendered}>{Markup('').join(content)}</{name}>")


def format_number(value: float | None) -> str:
    """Return up to four significant digits; a dash for None and nan."""
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3e}".replace(".000", "")
    return text.replace("e-0", "e-").replace("e+0", "e")


def format_percent(share: float | None) -> str:
    """Return a percentage with two decimals, never 100% for a share below 1; a dash for None and nan."""
    if share is None or math.isnan(share):
        return "-"
    return "99.99%" if 0.9999 < share < 1 else f"{share:.2%}"


def format_short_percent(share: float | None) -> str:
    """Return a percentage with as few digits as possible."""
    return "-" if share is None else f"{round(share * 100, 6):g}%"


def metric_format(metric: str) -> Format:
    """Return the format of a metric's values: accuracies in percent."""
    return format_percent if "accuracy" in metric else format_number


def colour(position: float) -> str:
    """Return the hex colour at this position of the colour map, 0 (dark) to 1 (light)."""
    exact = min(max(position, 0.0), 1.0) * (len(COLOURS) - 1)
    low = min(int(exact), len(COLOURS) - 2)
    ends = [[int(COLOURS[k][i : i + 2], 16) for i in (1, 3, 5)] for k in (low, low + 1)]
    mixed = [round(a + (b - a) * (exact - low)) for a, b in zip(*ends, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


@dataclass(frozen=True)
class Scale:
    """Map from values, `low` to `high`, to screen coordinates, `start` to `end`."""

    kind: Kind
    low: float
    high: float
    start: float
    end: float
    names: tuple[str, ...] = ()  # of a category scale, whose values are 0 .. len(names) - 1

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value; nan for nan."""
        if self.kind == "log":
            value = math.log(value) if value > 0 else math.nan
            low, high = math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = MOST_TICKS) -> list[float]:
        """Return both ends of the scale and round values between them, about `most` in all, none too near to an end."""
        if self.kind == "category":
            return [float(k) for k in range(len(self.names))]
        inside = _decades(self.low, self.high, most) if self.kind == "log" else _steps(self.low, self.high, most)
        gap = 0.6 * abs(self.end - self.start) / most
        ends = (self.start, self.end)
        return [self.low, *(v for v in inside if all(abs(self(v) - end) >= gap for end in ends)), self.high]

    def label(self, value: float, format: Format = format_number) -> str:
        """Return the text of a tick."""
        return self.names[round(value)] if self.kind == "category" else format(value)


def fit_scale(
    values: Sequence[float], start: float, end: float, *, kind: Kind = "linear", exact: bool = False
) -> Scale:
    """Return a scale of all finite values.

    Args:
        values: Those that are not finite, or not positive on a log scale, are ignored.
        start: Coordinate of the low end.
        end: Coordinate of the high end.
        kind: Linear or log.
        exact: End at the lowest and the highest value; otherwise at the next round ones.
    """
    finite = [value for value in values if math.isfinite(value) and (kind == "linear" or value > 0)]
    low, high = (min(finite), max(finite)) if finite else (0.1, 1.0)
    if high - low <= 1e-9 * abs(high):  # a single value
        low, high = (
            (low / 2, high * 2) if kind == "log" else (low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1))
        )
    elif exact:
        return Scale(kind, low, high, start, end)
    if kind == "log":
        return Scale(kind, _round_log(low, math.floor), _round_log(high, math.ceil), start, end)
    step = _step(low, high, MOST_TICKS)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return Scale(kind, round(first * step, 12), round(last * step, 12), start, end)


def _attribute(value: float | str) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def _steps(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten."""
    step = _step(low, high, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _step(low: float, high: float, most: int) -> float:
    """Return the smallest round step that divides a range into at most `most` parts."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _round_log(value: float, towards: Callable[[float], int]) -> float:
    """Return the next value with one significant digit, downwards (floor) or upwards (ceil)."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return float(f"{towards(round(value / power, 6)) * power:.3g}")


def _decades(low: float, high: float, most: int) -> list[float]:
    """Return powers of ten, with multiples between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        inside = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in inside if low <= value <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / most)]
    return _steps(low, high, most)
