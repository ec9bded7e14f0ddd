"""sweep.html: trials of a sweep, the best one, and the importance of the parameters."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from cifar10_accel.report.charts import Axis, Line, bar_chart, line_chart
from cifar10_accel.report.page import write_page
from cifar10_accel.report.svg import metric_format
from cifar10_accel.report.sweep_charts import (
    colour_positions,
    finite_values,
    importance_shares,
    is_numeric,
    parallel_coordinates,
    value_map,
    varying_parameters,
)
from cifar10_accel.runs.trial import Parameter, Rerun, SweepView, Trial

PREFERRED = ("max_lr", "weight_decay")  # axes of the map, if both were searched


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A trial in the table; the sort value is empty for a trial without a value."""

    trial: Trial
    value: str
    sort_value: float | str
    parameters: tuple[Parameter, ...]
    link: str | None


def write_sweep_page(
    path: Path,
    sweep: SweepView,
    *,
    importance: Mapping[str, float] | None = None,
    importance_note: str = "",
    rerun: Rerun | None = None,
) -> None:
    """Write the page of a sweep: best trial, map, parallel coordinates, importance, learning curves and all trials.

    It is written for any trials: none finished, a single one, or some with values that are not finite.

    Args:
        path: File to write.
        sweep: Trials, and the metric and goal that they are compared by.
        importance: Share of the metric's variation that each parameter explains, if computed.
        importance_note: Method by which the importance was computed.
        rerun: Command that trains the best finished trial again; None if there is none.

    Raises:
        OSError: The file cannot be written.
    """
    trials, format = sweep.trials, metric_format(sweep.metric)
    positions = colour_positions(trials, sweep.goal)
    best = max((t for t in trials if t.number in positions), key=lambda t: positions[t.number], default=None)
    best_first = sorted(trials, key=lambda t: (-positions.get(t.number, -math.inf), t.number))
    varying = varying_parameters(trials)
    pair = map_axes(trials, varying, importance)
    names, shares = importance_shares(importance or {})
    importance_chart = bar_chart(names, shares, [""] * len(names), title="Share of the explained variation")
    columns = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    write_page(
        path,
        "sweep",
        sweep=sweep,
        best=best,
        rerun=rerun,
        format=format,
        counts=Counter(trial.state for trial in trials),
        seconds=sum(trial.seconds for trial in trials),
        median=statistics.median(finite_values(trials)) if best else None,
        map=value_map(sweep, *pair) if pair else None,
        parallel=parallel_coordinates(sweep, varying) if varying else None,
        importance=importance_chart if names else None,
        importance_note=importance_note,
        curves=_curves(sweep, best),
        columns=columns,
        rows=[
            _Row(
                trial=trial,
                value=format(trial.value),
                sort_value=next(iter(finite_values([trial])), ""),
                parameters=tuple(trial.parameters.get(name) for name in columns),
                link=trial.where if trial.where.startswith("https://") else None,
            )
            for trial in best_first
        ],
    )


def map_axes(
    trials: Sequence[Trial], names: Sequence[str], importance: Mapping[str, float] | None
) -> tuple[str, str] | None:
    """Return the two axes of the map: LR and weight decay if both were searched, else the most important parameters."""
    numeric = [name for name in names if sum(is_numeric(trial.parameters.get(name)) for trial in trials) > 1]
    if all(name in numeric for name in PREFERRED):
        return PREFERRED
    ordered = sorted(numeric, key=lambda name: -(importance or {}).get(name, 0.0))
    return (ordered[0], ordered[1]) if len(ordered) > 1 else None


def _curves(sweep: SweepView, best: Trial | None) -> Markup | None:
    """Return the learning curves of all trials that have one: the best in front, unfinished ones dashed."""
    with_curve = sorted((t for t in sweep.trials if t.curve), key=lambda t: t is best)
    lines = [
        Line(
            name=f"trial {t.number} ({t.state})",
            x=[e for e, _ in t.curve],
            y=[v for _, v in t.curve],
            style="best" if t is best else "faint dashed" if t.state != "finished" else "faint",
            trial=t.number,
        )
        for t in with_curve
    ]
    if not lines:
        return None
    x, y = Axis(label="epoch"), Axis(label=sweep.metric, format=metric_format(sweep.metric))
    return line_chart(lines, title="", x=x, y=y, legend=False)
