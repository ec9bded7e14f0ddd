"""sweep.html: what was tried, what was best, and what mattered."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from cifar10_accel.pages.charts import Axis, Line, bars, line_chart
from cifar10_accel.pages.page import write_page
from cifar10_accel.pages.svg import format_of
from cifar10_accel.pages.sweep_charts import (
    Goal,
    finite_values,
    goodness,
    importance_bars,
    is_numeric,
    parallel_coordinates,
    value_map,
    varying,
)
from cifar10_accel.trials import Parameter, Trial

PREFERRED = ("max_lr", "weight_decay")  # what a sweep is most often about


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A trial in the table, with what sorts it: empty for what is not there."""

    trial: Trial
    written: str
    sort_value: float | str
    values: tuple[Parameter, ...]
    link: str | None


def write_sweep_page(
    trials: Sequence[Trial],
    *,
    title: str,
    metric: str,
    goal: Goal,
    path: Path,
    importance: Mapping[str, float] | None = None,
    importance_note: str = "",
) -> None:
    """Writes the page of a sweep: a headline, map, parallel coordinates, importance, curves and all trials.

    importance: how much of the metric's variation each parameter explains, if somebody computed it;
    importance_note says by which method. Any trials will do: none finished, one, or some with a value
    that is not finite. Raises OSError if the file cannot be written.
    """
    shares = goodness(trials, goal)
    best = max((t for t in trials if t.number in shares), key=lambda t: shares[t.number], default=None)
    names = varying(trials)
    pair = map_axes(trials, names, importance)
    ordered, explained = importance_bars(importance or {})
    write_page(
        path, "sweep", title=title, metric=metric, goal=goal, best=best, written=format_of(metric),
        counts=Counter(trial.state for trial in trials), seconds=sum(trial.seconds for trial in trials),
        median=statistics.median(finite_values(trials)) if best else None,
        map=value_map(trials, *pair, metric=metric, goal=goal) if pair else None,
        parallel=parallel_coordinates(trials, names, metric=metric, goal=goal) if names else None,
        importance=bars(ordered, explained, [""] * len(ordered), title="Share of the explained variation")
        if ordered else None,
        importance_note=importance_note,
        curves=_curves(trials, best, metric),
        columns=list(dict.fromkeys(name for trial in trials for name in trial.parameters)),
        rows=[_row(trial, trials, metric) for trial in _best_first(trials, shares)],
    )  # fmt: skip


def map_axes(
    trials: Sequence[Trial], names: Sequence[str], importance: Mapping[str, float] | None
) -> tuple[str, str] | None:
    """The two parameters to draw a map of: LR and weight decay if both were searched, else the most important."""
    numeric = [name for name in names if sum(is_numeric(trial.parameters.get(name)) for trial in trials) > 1]
    if all(name in numeric for name in PREFERRED):
        return PREFERRED
    ordered = sorted(numeric, key=lambda name: -(importance or {}).get(name, 0.0))
    return (ordered[0], ordered[1]) if len(ordered) > 1 else None


def _curves(trials: Sequence[Trial], best: Trial | None, metric: str) -> Markup | None:
    """The learning curve of every trial that has one: the best in front, pruned ones dashed."""
    with_curve = sorted((t for t in trials if t.curve), key=lambda t: t is best)
    lines = [
        Line(
            name=f"trial {t.number} ({t.state})", x=[e for e, _ in t.curve], y=[v for _, v in t.curve],
            style="best" if t is best else "faint dashed" if t.state != "finished" else "faint", trial=t.number,
        )
        for t in with_curve
    ]  # fmt: skip
    if not lines:
        return None
    x, y = Axis(label="epoch"), Axis(label=metric, written=format_of(metric))
    return line_chart(lines, title="", x=x, y=y, legend=False)


def _best_first(trials: Sequence[Trial], shares: Mapping[int, float]) -> list[Trial]:
    return sorted(trials, key=lambda t: (-shares.get(t.number, -math.inf), t.number))


def _row(trial: Trial, trials: Sequence[Trial], metric: str) -> _Row:
    names = dict.fromkeys(name for other in trials for name in other.parameters)
    return _Row(
        trial=trial,
        written=format_of(metric)(trial.value),
        sort_value=next(iter(finite_values([trial])), ""),
        values=tuple(trial.parameters.get(name) for name in names),
        link=trial.where if trial.where.startswith("https://") else None,
    )
