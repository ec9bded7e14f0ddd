"""Read the trials of a sweep that W&B ran."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from cifar10_accel.errors import InputError
from cifar10_accel.formatting import format_value
from cifar10_accel.runs.trial import Parameter, State, SweepView, Trial
from cifar10_accel.tracking.wandb_api import connected

MAX_CURVE_POINTS = 1000  # W&B samples longer histories
STATES: Mapping[str, State] = {
    "finished": "finished",
    "running": "running",
    "pending": "running",
    "preempting": "stopped",
    "preempted": "stopped",
}


def pull(path: str) -> SweepView:
    """Return the sweep 'entity/project/sweep-id', its trials numbered from 0 in the order of their creation.

    Trials ended by W&B's early termination or stop button count as failed: W&B does not distinguish them from a crash.

    Raises:
        InputError: No such sweep, a sweep without metric, no login, or no connection to the server.
    """
    entity, project, sweep_id = _parts(path)
    with connected(path) as api:
        config = api.sweep(path).config
        runs = api.runs(f"{entity}/{project}", filters={"sweep": sweep_id}, order="+created_at", lazy=False)
        metric = config.get("metric", {})
        if "name" not in metric:
            raise InputError(f"{path}: the sweep has no metric, so its trials cannot be compared")
        searched = [name for name, given in config["parameters"].items() if "value" not in given]
        trials = [_trial(number, run, searched, metric["name"]) for number, run in enumerate(runs)]
    return SweepView(title=path, metric=metric["name"], goal=metric.get("goal", "minimize"), trials=tuple(trials))


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    if len(parts) != 3 or not all(parts):
        raise InputError(f"{path}: not the path of a W&B sweep; give entity/project/sweep-id")
    return parts


def _parameter(given: Any) -> Parameter:
    """Return a parameter as a local sweep has it: a list or mapping as the text of a flag, a number that is finite."""
    if isinstance(given, float) and not math.isfinite(given):
        return str(given)
    return given if isinstance(given, get_args(Parameter)) else format_value(given)


def _number(given: Any) -> float | None:
    """Return a finite number; None for anything else, such as the text NaN that W&B has for a loss without a value."""
    try:
        number = float(given)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _trial(number: int, run: Any, searched: list[str], metric: str) -> Trial:
    state = STATES.get(run.state, "failed")
    rows = run.history(keys=[metric], x_axis="epoch", samples=MAX_CURVE_POINTS, pandas=False)
    points = [(float(row["epoch"]), _number(row[metric])) for row in rows]
    curve = tuple((epoch, value) for epoch, value in points if value is not None)
    last = points[-1][1] if points else None
    parameters = {name: _parameter(run.config[name]) for name in searched if name in run.config}
    return Trial(
        number=number,
        state=state,
        parameters=parameters,
        value=_number(run.summary[metric]) if metric in run.summary else last,
        curve=curve,
        seconds=float(run.summary.get("_runtime", 0.0)),
        where=run.url,
        reason=f"{run.state} in W&B" if state == "failed" else "",
    )
