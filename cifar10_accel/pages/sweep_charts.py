"""The charts of a sweep: the metric over two parameters, and all parameters side by side."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from markupsafe import Markup

from cifar10_accel.pages.charts import LEFT, RIGHT, TOP, WIDTH, Axis, axes, figure, svg
from cifar10_accel.pages.page import word
from cifar10_accel.pages.svg import COLOURS, Format, Scale, colour, fit, format_of, tag
from cifar10_accel.trials import Parameter, Trial

Goal = Literal["maximize", "minimize"]

MAP_HEIGHT = 430.0
MAP_CELLS = 28  # along each side
FEWEST_FOR_A_MAP = 8  # finished trials; fewer say nothing about what lies between them
BANDWIDTH, REACH = 0.09, 0.16  # of the map's side: how far a trial speaks, and how far it is heard
LOG_FROM = 15.0  # a positive parameter that varies by more than this factor gets a log axis
AXIS_SPACING, AXIS_HEIGHT = 150.0, 330.0


def finite_values(trials: Sequence[Trial]) -> list[float]:
    """The values of the trials that have a finite one."""
    return [float(trial.value) for trial in trials if trial.value is not None and math.isfinite(trial.value)]


def colour_range(trials: Sequence[Trial], goal: Goal) -> tuple[float, float]:
    """The values that have the worst and the best colour.

    The worst colour is as far below the median as the best is above it, or the worst value if that is nearer: a few
    trials that failed must not make all others look alike. There must be a finite value.
    """
    values = sorted(finite_values(trials), reverse=goal == "minimize")
    worst, middle, best = values[0], median(values), values[-1]
    if middle == best:  # more than half are the best
        return worst, best
    mirrored = 2 * middle - best
    return max(worst, mirrored) if goal == "maximize" else min(worst, mirrored), best


def goodness(trials: Sequence[Trial], goal: Goal) -> dict[int, float]:
    """For each trial with a value its place in the range of colours: 1 the best, 0 the worst colour, or less."""
    values = {trial.number: value for trial in trials for value in finite_values([trial])}
    if not values:
        return {}
    worst, best = colour_range(trials, goal)
    return {number: (value - worst) / (best - worst) if best != worst else 1.0 for number, value in values.items()}


def varying(trials: Sequence[Trial]) -> list[str]:
    """The parameters that have more than one value, in the order of their first use."""
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    return [name for name in names if len({trial.parameters.get(name) for trial in trials}) > 1]


def scale_of(values: Sequence[Parameter], start: float, end: float) -> Scale:
    """A scale for a parameter: categories for words, log for what spans decades, else linear."""
    if not all(is_numeric(value) for value in values):
        names = tuple(dict.fromkeys(word(value) for value in values))
        room = 0.5 if len(names) == 1 else 0.0
        return Scale("category", -room, len(names) - 1 + room, start, end, names)
    numbers = [float(value) for value in values if value is not None]
    is_log = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) > LOG_FROM
    return fit(numbers, start, end, kind="log" if is_log else "linear")


def is_numeric(value: Parameter) -> bool:
    """Whether a parameter's value has a place on a scale of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_map(trials: Sequence[Trial], x: str, y: str, *, metric: str, goal: Goal) -> Markup:
    """Every trial at its two parameters, coloured by its value; behind them the smoothed value where trials are near.

    Finished trials are dots, pruned ones rings, those without a value crosses; the best is marked.
    """
    placed = [t for t in trials if is_numeric(t.parameters.get(x)) and is_numeric(t.parameters.get(y))]
    across = scale_of([t.parameters[x] for t in placed], LEFT, WIDTH - RIGHT)
    up = scale_of([t.parameters[y] for t in placed], MAP_HEIGHT - 50, TOP)
    shares = goodness(trials, goal)
    places = {t.number: (_place(t, x, across), _place(t, y, up)) for t in placed}
    ended = [(*places[t.number], shares[t.number]) for t in placed if t.number in shares and t.state == "finished"]
    cells = _smoothed(ended, across, up) if len(ended) >= FEWEST_FOR_A_MAP else []
    best = max(shares, key=lambda n: shares[n], default=None)
    dots = [_dot(t, places[t.number], shares.get(t.number), metric, is_best=t.number == best) for t in placed]
    labels = [Axis(label=f"{name}{', log scale' if s.kind == 'log' else ''}") for name, s in ((x, across), (y, up))]
    frame = axes(across, up, *labels, height=MAP_HEIGHT)
    smooth = tag("g", *cells, class_="cells")
    picture = svg(f"{metric} by {x} and {y}", smooth, frame, *dots, height=MAP_HEIGHT)
    return figure(f"{metric} by {x} and {y}", picture + colour_key(trials, metric, goal), _map_note(bool(cells)))


def parallel_coordinates(trials: Sequence[Trial], names: Sequence[str], *, metric: str, goal: Goal) -> Markup:
    """A line for each trial through all its parameters to its value, the best drawn last.

    Arrow keys walk through the trials, from the best, when the chart has the focus.
    """
    shares = goodness(trials, goal)
    top, bottom = 40.0, AXIS_HEIGHT - 24
    scales = {name: scale_of([t.parameters.get(name) for t in trials], bottom, top) for name in names}
    values = fit(finite_values(trials), bottom, top)
    spacing = AXIS_SPACING if len(names) < 6 else AXIS_SPACING * 0.8
    columns = {name: 76 + k * spacing for k, name in enumerate([*names, metric])}
    ordered = sorted(trials, key=lambda t: shares.get(t.number, -math.inf))
    drawn = [_strand(t, scales, values, columns, shares.get(t.number), metric) for t in ordered]
    rulers = [_ruler(name, columns[name], scale, word_or_number=None) for name, scale in scales.items()]
    rulers.append(_ruler(metric, columns[metric], values, word_or_number=format_of(metric)))
    width = max(columns.values()) + 76
    picture = svg("all trials, parameter by parameter; arrow keys walk through them", *drawn, *rulers, width=width,
                  height=AXIS_HEIGHT, tabindex="0", data_walk="trials")  # fmt: skip
    return figure("", tag("div", picture, class_="scroll", style=f"--least:{width:.0f}px")
                  + colour_key(trials, metric, goal), "Grey dashed lines: trials without a value.")  # fmt: skip


def importance_bars(importance: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """Parameters by importance, and their shares of the whole."""
    ordered = sorted(importance, key=lambda name: -importance[name])
    total = sum(importance.values())
    return ordered, [importance[name] / total if total > 0 else math.nan for name in ordered]


def colour_key(trials: Sequence[Trial], metric: str, goal: Goal) -> Markup:
    """What the colours mean: the values at the ends of their range."""
    values = finite_values(trials)
    if not values:
        return Markup("")
    written, (worst, best) = format_of(metric), colour_range(trials, goal)
    are_worse = any(value < worst if goal == "maximize" else value > worst for value in values)
    ramp = f"background:linear-gradient(90deg,{','.join(COLOURS)})"
    return tag("p", tag("span", f"{metric} {written(worst)}{' or worse' if are_worse else ''}"),
               tag("span", class_="ramp", style=ramp), tag("span", f"{written(best)} (best)"),
               class_="key-ramp")  # fmt: skip


def described(trial: Trial, metric: str) -> str:
    """A trial in one line: number, value, parameters."""
    parameters = ", ".join(f"{name} {word(value)}" for name, value in trial.parameters.items())
    return f"trial {trial.number} ({trial.state}): {metric} {format_of(metric)(trial.value)}; {parameters}"


def _place(trial: Trial, name: str, scale: Scale) -> float:
    value = trial.parameters.get(name)
    return scale(scale.names.index(word(value))) if scale.kind == "category" else scale(float(value or 0))


def _smoothed(trials: Sequence[tuple[float, float, float]], across: Scale, up: Scale) -> list[Markup]:
    """Cells of the mean of the trials around, near ones counting more (Nadaraya-Watson), where any is near."""
    width, height = (across.end - across.start) / MAP_CELLS, (up.start - up.end) / MAP_CELLS
    cells = []
    for column in range(MAP_CELLS):
        for row in range(MAP_CELLS):
            x, y = across.start + (column + 0.5) * width, up.end + (row + 0.5) * height
            far = [math.hypot((x - a) / (MAP_CELLS * width), (y - b) / (MAP_CELLS * height)) for a, b, _ in trials]
            if min(far) > REACH:
                continue
            weights = [math.exp(-0.5 * (d / BANDWIDTH) ** 2) for d in far]
            mean = sum(w * share for w, (_, _, share) in zip(weights, trials, strict=True)) / sum(weights)
            cells.append(tag("rect", x=x - width / 2, y=y - height / 2, width=width + 0.6, height=height + 0.6,
                             fill=colour(mean)))  # fmt: skip
    return cells


def _dot(trial: Trial, place: tuple[float, float], share: float | None, metric: str, *, is_best: bool) -> Markup:
    x, y = place
    said = tag("title", described(trial, metric))
    if share is None:
        cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return tag("path", said, d=cross, class_="cross", data_trial=trial.number)
    ring = tag("circle", cx=x, cy=y, r=11, class_="best-ring") if is_best else Markup("")
    style = "point" if trial.state == "finished" else "point open"
    hue = f"--hue:{colour(share)}"
    return ring + tag("circle", said, cx=x, cy=y, r=6, class_=style, style=hue, data_trial=trial.number)


def _strand(
    trial: Trial, scales: Mapping[str, Scale], values: Scale, columns: Mapping[str, float], share: float | None,
    metric: str,
) -> Markup:  # fmt: skip
    places = [(columns[name], _place(trial, name, scale)) for name, scale in scales.items()]
    if share is not None and trial.value is not None:
        places.append((columns[metric], values(trial.value)))
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    style = "strand" if share is not None else "strand dashed"
    hue = None if share is None else f"--hue:{colour(share)}"
    return tag("path", tag("title", described(trial, metric)), d=f"M{path}", class_=style, style=hue,
               data_trial=trial.number)  # fmt: skip


def _ruler(name: str, x: float, scale: Scale, *, word_or_number: Format | None) -> Markup:
    """One upright axis: its name above, its values to the left."""
    ticks = [
        tag("path", d=f"M{x - 4:.1f} {scale(v):.1f}h8", class_="mark")
        + tag("text", scale.label(v, word_or_number) if word_or_number else scale.label(v), x=x - 8, y=scale(v) + 4,
              class_="tick end halo")
        for v in scale.ticks(5)
    ]  # fmt: skip
    heading = tag("text", name, x=x, y=18.0, class_="label middle")
    return tag("g", tag("path", d=f"M{x:.1f} {scale.end:.1f}V{scale.start:.1f}", class_="axis"), *ticks, heading)


def _map_note(has_cells: bool) -> str:
    dots = "Dots: finished trials; rings: pruned ones, at their last value; crosses: trials without a value."
    if has_cells:
        return f"{dots} Behind them the mean of the finished trials nearby; blank where there is none."
    return f"{dots} With fewer than {FEWEST_FOR_A_MAP} finished trials nothing is drawn between them."
