"""Charts of a sweep: the metric over two parameters, and parallel coordinates of all parameters."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from markupsafe import Markup

from cifar10_accel.formatting import format_value
from cifar10_accel.report.charts import LEFT, RIGHT, TOP, WIDTH, Axis, axes, figure, svg
from cifar10_accel.report.svg import COLOURS, Format, Scale, colour, fit_scale, format_number, metric_format, tag
from cifar10_accel.runs.trial import Goal, Parameter, SweepView, Trial

MAP_HEIGHT = 430.0
MAP_CELLS = 28  # along each side
MIN_TRIALS_TO_SMOOTH = 8  # finished trials
BANDWIDTH, MAX_DISTANCE = 0.09, 0.16  # of the Gaussian kernel, and to the nearest trial; in shares of the side
LOG_RATIO = 15.0  # a positive parameter that varies by more than this factor gets a log axis
AXIS_SPACING, AXIS_HEIGHT = 150.0, 330.0


def finite_values(trials: Sequence[Trial]) -> list[float]:
    """Return the values of the trials that have a finite one."""
    return [float(trial.value) for trial in trials if trial.value is not None and math.isfinite(trial.value)]


def colour_range(trials: Sequence[Trial], goal: Goal) -> tuple[float, float]:
    """Return the values that have the worst and the best colour; there must be a finite value.

    The worst colour is as far below the median as the best is above it, or at the worst value if that is nearer, so
    that a few very bad trials do not make the colours of all others alike.
    """
    values = sorted(finite_values(trials), reverse=goal == "minimize")
    worst, middle, best = values[0], median(values), values[-1]
    if middle == best:  # more than half are the best
        return worst, best
    mirrored = 2 * middle - best
    return max(worst, mirrored) if goal == "maximize" else min(worst, mirrored), best


def colour_positions(trials: Sequence[Trial], goal: Goal) -> dict[int, float]:
    """Return the position of each trial with a value in the colour range: 1 the best colour, 0 or less the worst."""
    values = {trial.number: value for trial in trials for value in finite_values([trial])}
    if not values:
        return {}
    worst, best = colour_range(trials, goal)
    return {number: (value - worst) / (best - worst) if best != worst else 1.0 for number, value in values.items()}


def varying_parameters(trials: Sequence[Trial]) -> list[str]:
    """Return the parameters with more than one value, in the order of their first use."""
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    return [name for name in names if len({trial.parameters.get(name) for trial in trials}) > 1]


def parameter_scale(values: Sequence[Parameter], start: float, end: float) -> Scale:
    """Return the scale of a parameter: categories for strings, log for a wide range of positive values, else linear."""
    if not all(is_numeric(value) for value in values):
        names = tuple(dict.fromkeys(format_value(value) for value in values))
        margin = 0.5 if len(names) == 1 else 0.0
        return Scale("category", -margin, len(names) - 1 + margin, start, end, names)
    numbers = [float(value) for value in values if value is not None]
    is_log = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) > LOG_RATIO
    return fit_scale(numbers, start, end, kind="log" if is_log else "linear")


def is_numeric(value: Parameter) -> bool:
    """Return True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_map(sweep: SweepView, x: str, y: str) -> Markup:
    """Return a map of the trials over two parameters, coloured by value, over the smoothed values of finished trials.

    Finished trials are dots, pruned ones rings, those without a value crosses; the best is marked.
    """
    metric = sweep.metric
    placed = [t for t in sweep.trials if is_numeric(t.parameters.get(x)) and is_numeric(t.parameters.get(y))]
    across = parameter_scale([t.parameters[x] for t in placed], LEFT, WIDTH - RIGHT)
    up = parameter_scale([t.parameters[y] for t in placed], MAP_HEIGHT - 50, TOP)
    shares = colour_positions(sweep.trials, sweep.goal)
    places = {t.number: (_place(t, x, across), _place(t, y, up)) for t in placed}
    ended = [(*places[t.number], shares[t.number]) for t in placed if t.number in shares and t.state == "finished"]
    cells = _smoothed(ended, across, up) if len(ended) >= MIN_TRIALS_TO_SMOOTH else []
    best = max(shares, key=lambda n: shares[n], default=None)
    dots = [_dot(t, places[t.number], shares.get(t.number), metric, is_best=t.number == best) for t in placed]
    labels = [Axis(label=f"{name}{', log scale' if s.kind == 'log' else ''}") for name, s in ((x, across), (y, up))]
    frame = axes(across, up, *labels, height=MAP_HEIGHT)
    smooth = tag("g", *cells, class_="cells")
    picture = svg(f"{metric} by {x} and {y}", smooth, frame, *dots, height=MAP_HEIGHT)
    return figure(f"{metric} by {x} and {y}", picture + colour_key(sweep), _map_note(bool(cells)))


def parallel_coordinates(sweep: SweepView, names: Sequence[str]) -> Markup:
    """Return parallel coordinates: a line for each trial through these parameters to its value, the best on top.

    Arrow keys select the trials in turn, from the best, when the chart has the focus.
    """
    trials, metric = sweep.trials, sweep.metric
    shares = colour_positions(trials, sweep.goal)
    top, bottom = 40.0, AXIS_HEIGHT - 24
    scales = {name: parameter_scale([t.parameters.get(name) for t in trials], bottom, top) for name in names}
    values = fit_scale(finite_values(trials), bottom, top)
    spacing = AXIS_SPACING if len(names) < 6 else AXIS_SPACING * 0.8
    columns = {name: 76 + k * spacing for k, name in enumerate([*names, metric])}
    ordered = sorted(trials, key=lambda t: shares.get(t.number, -math.inf))
    drawn = [_trial_line(t, scales, values, columns, shares.get(t.number), metric) for t in ordered]
    rulers = [_ruler(name, columns[name], scale) for name, scale in scales.items()]
    format = Axis(label=metric, format=metric_format(metric)).tick_format
    rulers.append(_ruler(metric, columns[metric], values, format=format))
    width = max(columns.values()) + 76
    picture = svg(
        "all trials over all parameters; arrow keys select a trial",
        *drawn,
        *rulers,
        width=width,
        height=AXIS_HEIGHT,
        tabindex="0",
        data_arrow_keys="trials",
    )
    return figure(
        "",
        tag("div", picture, class_="scroll", style=f"--least:{width:.0f}px") + colour_key(sweep),
        "Grey dashed lines: trials without a value.",
    )


def importance_shares(importance: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """Return the parameters by falling importance, and their shares of the sum."""
    ordered = sorted(importance, key=lambda name: -importance[name])
    total = sum(importance.values())
    return ordered, [importance[name] / total if total > 0 else math.nan for name in ordered]


def colour_key(sweep: SweepView) -> Markup:
    """Return the legend of the colours: the values at the ends of their range."""
    values = finite_values(sweep.trials)
    if not values:
        return Markup("")
    format, (worst, best) = metric_format(sweep.metric), colour_range(sweep.trials, sweep.goal)
    are_worse = any(value < worst if sweep.goal == "maximize" else value > worst for value in values)
    ramp = f"background:linear-gradient(90deg,{','.join(COLOURS)})"
    return tag(
        "p",
        tag("span", f"{sweep.metric} {format(worst)}{' or worse' if are_worse else ''}"),
        tag("span", class_="ramp", style=ramp),
        tag("span", f"{format(best)} (best)"),
        class_="key-ramp",
    )


def trial_title(trial: Trial, metric: str) -> str:
    """Return the hover title of a trial: number, state, value, parameters."""
    parameters = ", ".join(f"{name} {format_value(value)}" for name, value in trial.parameters.items())
    return f"trial {trial.number} ({trial.state}): {metric} {metric_format(metric)(trial.value)}; {parameters}"


def _place(trial: Trial, name: str, scale: Scale) -> float:
    value = trial.parameters.get(name)
    return scale(scale.names.index(format_value(value))) if scale.kind == "category" else scale(float(value or 0))


def _smoothed(trials: Sequence[tuple[float, float, float]], across: Scale, up: Scale) -> list[Markup]:
    """Return cells of the kernel-weighted mean of the trials (Nadaraya-Watson), where a trial is near."""
    width, height = (across.end - across.start) / MAP_CELLS, (up.start - up.end) / MAP_CELLS
    cells = []
    for column in range(MAP_CELLS):
        for row in range(MAP_CELLS):
            x, y = across.start + (column + 0.5) * width, up.end + (row + 0.5) * height
            distances = [
                math.hypot((x - a) / (MAP_CELLS * width), (y - b) / (MAP_CELLS * height)) for a, b, _ in trials
            ]
            if min(distances) > MAX_DISTANCE:
                continue
            weights = [math.exp(-0.5 * (d / BANDWIDTH) ** 2) for d in distances]
            mean = sum(w * share for w, (_, _, share) in zip(weights, trials, strict=True)) / sum(weights)
            cells.append(
                tag(
                    "rect", x=x - width / 2, y=y - height / 2, width=width + 0.6, height=height + 0.6, fill=colour(mean)
                )
            )
    return cells


def _dot(trial: Trial, place: tuple[float, float], share: float | None, metric: str, *, is_best: bool) -> Markup:
    x, y = place
    title = tag("title", trial_title(trial, metric))
    if share is None:
        cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return tag("path", title, d=cross, class_="cross", data_trial=trial.number)
    ring = tag("circle", cx=x, cy=y, r=11, class_="best-ring") if is_best else Markup("")
    style = "point" if trial.state == "finished" else "point open"
    hue = f"--hue:{colour(share)}"
    return ring + tag("circle", title, cx=x, cy=y, r=6, class_=style, style=hue, data_trial=trial.number)


def _trial_line(
    trial: Trial,
    scales: Mapping[str, Scale],
    values: Scale,
    columns: Mapping[str, float],
    share: float | None,
    metric: str,
) -> Markup:
    places = [(columns[name], _place(trial, name, scale)) for name, scale in scales.items()]
    if share is not None and trial.value is not None:
        places.append((columns[metric], values(trial.value)))
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    style = "strand" if share is not None else "strand dashed"
    hue = None if share is None else f"--hue:{colour(share)}"
    return tag(
        "path", tag("title", trial_title(trial, metric)), d=f"M{path}", class_=style, style=hue, data_trial=trial.number
    )


def _ruler(name: str, x: float, scale: Scale, *, format: Format = format_number) -> Markup:
    """Return one vertical axis: its name above, its values to the left."""
    ticks = [
        tag("path", d=f"M{x - 4:.1f} {scale(v):.1f}h8", class_="mark")
        + tag(
            "text",
            scale.label(v, format),
            x=x - 8,
            y=scale(v) + 4,
            class_="tick end halo",
        )
        for v in scale.ticks(5)
    ]
    heading = tag("text", name, x=x, y=18.0, class_="label middle")
    return tag("g", tag("path", d=f"M{x:.1f} {scale.end:.1f}V{scale.start:.1f}", class_="axis"), *ticks, heading)


def _map_note(has_cells: bool) -> str:
    dots = "Dots: finished trials; rings: pruned ones, at their last value; crosses: trials without a value."
    if has_cells:
        return f"{dots} Background: weighted mean of the finished trials nearby; blank where there is none."
    return f"{dots} With fewer than {MIN_TRIALS_TO_SMOOTH} finished trials there is no background."
