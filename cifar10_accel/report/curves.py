"""Learning curves of one run or of several, from the rows of their metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from cifar10_accel.report.charts import Axis, Line, line_chart
from cifar10_accel.report.svg import metric_format

Metrics = Sequence[Mapping[str, float]]  # rows of metrics.jsonl

SPLITS = {"train": "s4", "val": "s2", "test": "s1"}  # with their styles
COMPARED = ("val/accuracy", "test/accuracy", "train/accuracy", "val/loss", "test/loss", "train/loss", "lr")
EPOCH = Axis(label="epoch")


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


def run_curves(metrics: Metrics) -> list[Markup]:
    """Return the charts of loss, accuracy, learning rate and momentum that the metrics have values for."""
    charts = []
    for measure in ("loss", "accuracy"):
        lines = [curve(metrics, f"{split}/{measure}", name=split, style=style) for split, style in SPLITS.items()]
        charts.append(_chart(lines, title=measure.capitalize(), label=measure))
    for metric, title in (("lr", "Learning rate"), ("momentum", "Momentum")):
        charts.append(_chart([curve(metrics, metric, name=metric, style="s3")], title=title, label=metric))
    return [chart for chart in charts if chart is not None]


def compared_curves(runs: Mapping[str, Metrics]) -> list[Markup]:
    """Return a chart of each metric with several values in some run, a line for each run; six have distinct colours."""
    charts = []
    for metric in COMPARED:
        lines = [
            curve(metrics, metric, name=name, style=f"s{number % 6 + 1}")
            for number, (name, metrics) in enumerate(runs.items())
        ]
        if any(line is not None and len(line.x) > 1 for line in lines):
            charts.append(_chart(lines, title=metric, label=metric))
    return [chart for chart in charts if chart is not None]


def _chart(lines: Sequence[Line | None], *, title: str, label: str) -> Markup | None:
    drawn = [line for line in lines if line is not None]
    return line_chart(drawn, title=title, x=EPOCH, y=Axis(label=label, format=metric_format(label))) if drawn else None
