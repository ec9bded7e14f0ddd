"""Learning curves of one run or of several, from the rows of their metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from cifar10_accel.report.charts import Axis, Line, Mark, line_chart
from cifar10_accel.report.svg import metric_format
from cifar10_accel.runs.dynamics import Dynamics
from cifar10_accel.settings import Settings

Metrics = Sequence[Mapping[str, float]]  # rows of metrics.jsonl

CROSS_ENTROPY = "train/cross_entropy"  # mean over an epoch, of the label itself: comparable with the other losses
SPLITS = {"train": "s4", "val": "s2", "test": "s1"}  # with their styles
COMPARED = ("val/accuracy", "test/accuracy", "train/accuracy", "val/loss", "test/loss", "train/loss", "lr")
EPOCH = Axis(label="epoch", start=0)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Charts of a run, and what has none because it does not change."""

    charts: tuple[Markup, ...]
    constants: Mapping[str, str]  # values of the other metrics, as text
    has_cross_entropy: bool  # a line of the training loss without smoothing is shown


def curve(metrics: Metrics, metric: str, *, name: str, style: str) -> Line | None:
    """Return the metric over the epochs, with a gap where it is not finite; None if no row has a finite value."""
    points = [(row.get("epoch", math.nan), row[metric]) for row in metrics if metric in row]
    if not any(math.isfinite(value) for _, value in points):
        return None
    return Line(
        name=name,
        x=[epoch for epoch, _ in points],
        y=[value if math.isfinite(value) else math.nan for _, value in points],
        style=style,
    )


def run_curves(metrics: Metrics, marks: Sequence[Mark] = ()) -> Curves:
    """Return the charts of loss, accuracy, learning rate and momentum that the metrics have values for.

    A chart in which every line is constant is left out; its values are given instead.

    Args:
        metrics: Rows of metrics.jsonl, with those of `with_cross_entropy`.
        marks: Epochs to mark, such as `image_size_changes`.
    """
    smoothed = any(CROSS_ENTROPY in row for row in metrics)
    charts: list[Markup] = []
    constants: dict[str, str] = {}
    groups: dict[str, list[Line | None]] = {
        measure: [curve(metrics, f"{split}/{measure}", name=split, style=style) for split, style in SPLITS.items()]
        for measure in ("loss", "accuracy")
    }
    if smoothed:
        groups["loss"][:1] = [
            curve(metrics, "train/loss", name="train, as optimised", style="s4 faint"),
            curve(metrics, CROSS_ENTROPY, name="train, cross-entropy", style="s4"),
        ]
    groups |= {metric: [curve(metrics, metric, name=metric, style="s3")] for metric in ("lr", "momentum")}
    for (metric, lines), title in zip(groups.items(), ("Loss", "Accuracy", "Learning rate", "Momentum"), strict=True):
        drawn = [line for line in lines if line is not None]
        if drawn and all(line.is_constant for line in drawn):
            constants |= {f"{line.name} {metric}" if len(lines) > 1 else metric: _last(line, metric) for line in drawn}
        elif drawn:
            charts.append(_chart(drawn, title=title, label=metric, marks=marks))
    return Curves(charts=tuple(charts), constants=constants, has_cross_entropy=smoothed)


def with_cross_entropy(metrics: Metrics, dynamics: Dynamics | None, settings: Settings) -> Metrics:
    """Return the metrics with the mean cross-entropy of each epoch, if the training loss is another one.

    With smoothed labels, weighted classes or a loss of its own, `train/loss` cannot be compared with the losses of test
    and val. The record of the training dynamics has the cross-entropy of every training image. With mixed images it is
    not comparable either.
    """
    is_other = settings.label_smoothing or settings.loss != "cross_entropy" or settings.class_weights is not None
    if dynamics is None or not is_other or settings.mixup_alpha or settings.cutmix_alpha:
        return metrics
    losses = dynamics.loss.astype(np.float64)
    rows = [
        {"epoch": float(epoch), CROSS_ENTROPY: float(np.nanmean(loss))}
        for epoch, loss in enumerate(losses, start=1)
        if np.isfinite(loss).any()
    ]
    return [*metrics, *rows]


def image_size_changes(settings: Settings, environment: Mapping[str, Any]) -> list[Mark]:
    """Return a mark where the training continues with larger images; none without low-resolution epochs.

    Args:
        settings: Of the run.
        environment: Content of environment.json, which has the size of the images, but not in early versions.
    """
    epoch, full = settings.low_res_epochs, (environment.get("images") or {}).get("size")
    after = f"{full} px" if full else "full size"
    return [Mark(x=epoch, before=f"{settings.low_res_size} px", after=after)] if 0 < epoch < settings.epochs else []


def compared_curves(runs: Mapping[str, Metrics]) -> list[Markup]:
    """Return a chart of each metric that changes in some run, a line for each run; six have distinct colours."""
    charts = []
    for metric in COMPARED:
        lines = [
            curve(metrics, metric, name=name, style=f"s{number % 6 + 1}")
            for number, (name, metrics) in enumerate(runs.items())
        ]
        drawn = [line for line in lines if line is not None]
        if any(len(line.x) > 1 and not line.is_constant for line in drawn):
            charts.append(_chart(drawn, title=metric, label=metric))
    return charts


def _last(line: Line, metric: str) -> str:
    return metric_format(metric)(next(value for value in reversed(line.y) if math.isfinite(value)))


def _chart(lines: Sequence[Line], *, title: str, label: str, marks: Sequence[Mark] = ()) -> Markup:
    return line_chart(lines, title=title, x=EPOCH, y=Axis(label=label, format=metric_format(label)), marks=marks)
