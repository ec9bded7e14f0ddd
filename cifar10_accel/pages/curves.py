"""The learning curves of a run or of several, from the lines of their metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from cifar10_accel.pages.charts import Axis, Line, line_chart
from cifar10_accel.pages.svg import format_of

Lines = Sequence[Mapping[str, float]]

SPLITS = {"train": "s4", "val": "s2", "test": "s1"}  # with their styles
COMPARED = ("val/accuracy", "test/accuracy", "train/accuracy", "val/loss", "test/loss", "train/loss", "lr")
EPOCH = Axis(label="epoch")


def curve(lines: Lines, metric: str, *, name: str, style: str) -> Line | None:
    """The metric over the epochs, a gap where it is not finite; None if no line has it."""
    found = [(line.get("epoch", math.nan), line[metric]) for line in lines if metric in line]
    if not any(math.isfinite(value) for _, value in found):
        return None
    return Line(
        name=name, x=[epoch for epoch, _ in found],
        y=[value if math.isfinite(value) else math.nan for _, value in found], style=style,
    )  # fmt: skip


def run_curves(lines: Lines) -> list[Markup]:
    """Charts of loss, accuracy, LR and momentum, as far as the lines have them."""
    charts = []
    for measure in ("loss", "accuracy"):
        found = [curve(lines, f"{split}/{measure}", name=split, style=style) for split, style in SPLITS.items()]
        charts.append(_chart(found, title=measure.capitalize(), label=measure))
    for metric, title in (("lr", "Learning rate"), ("momentum", "Momentum")):
        charts.append(_chart([curve(lines, metric, name=metric, style="s3")], title=title, label=metric))
    return [chart for chart in charts if chart is not None]


def curves_together(runs: Mapping[str, Lines]) -> list[Markup]:
    """A chart of each metric that was followed in some run, with a line for every run; up to six have own colours."""
    charts = []
    for metric in COMPARED:
        found = [curve(lines, metric, name=name, style=f"s{number % 6 + 1}") for number, (name, lines) in
                 enumerate(runs.items())]  # fmt: skip
        if any(line is not None and len(line.x) > 1 for line in found):
            charts.append(_chart(found, title=metric, label=metric))
    return [chart for chart in charts if chart is not None]


def _chart(found: Sequence[Line | None], *, title: str, label: str) -> Markup | None:
    drawn = [line for line in found if line is not None]
    return line_chart(drawn, title=title, x=EPOCH, y=Axis(label=label, written=format_of(label))) if drawn else None
