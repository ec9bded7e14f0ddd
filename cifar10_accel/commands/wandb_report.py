"""W&B report of a project, or of one sweep in it: curves, effects of the settings, misclassified images."""

from typing import Any

from cifar10_accel.errors import InputError
from cifar10_accel.tracking.wandb_api import connected

# Settings that are shown if no sweep defines them: True for a logarithmic scale.
USUAL_SETTINGS = {"max_lr": True, "weight_decay": True}
USUAL_METRIC = "val/accuracy"
WIDTH, HALF = 24, 12  # of W&B's grid


def create(path: str, *, sweep: str | None = None) -> str:
    """Create a report and return its URL. Each call creates a new one.

    Args:
        path: The project, 'entity/project'.
        sweep: ID of a sweep in it, whose runs alone are shown; None for all runs.

    Raises:
        InputError: There is no such project or sweep, nobody is logged in, the server does not respond, or the extra
            `reports` is not installed.
    """
    try:
        from wandb_workspaces import expr
        from wandb_workspaces.reports import v2
    except ImportError:
        raise InputError("report --wandb: pip install 'cifar10-accel[reports]' first") from None
    wr: Any = v2
    entity, project = _split_project(path)
    with connected(path) as api:
        settings, metric = USUAL_SETTINGS, USUAL_METRIC
        if sweep is not None:
            settings, metric = _searched(api.sweep(f"{path}/{sweep}").config)
        name = f"Runs of {project}" if sweep is None else f"Sweep {sweep} of {project}"
        filters = "" if sweep is None else expr.And(expr.Metric("Sweep") == sweep)
        runs = wr.Runset(entity=entity, project=project, name=name, filters=filters)
        report = wr.Report(
            entity=entity,
            project=project,
            title=name,
            width="fluid",
            blocks=[
                wr.H1("Training"),
                wr.PanelGrid(runsets=[runs], panels=_curves(wr)),
                wr.H1("Settings"),
                wr.PanelGrid(runsets=[runs], panels=_effects(wr, settings, metric)),
                wr.H1("Misclassified images"),
                wr.PanelGrid(runsets=[runs], panels=[_table(wr, "misclassified")]),
            ],
        )
        report.save()
        return str(report.url)


def _split_project(path: str) -> list[str]:
    parts = path.split("/")
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{path}: not a W&B project; give entity/project")
    return parts


def _searched(config: dict[str, Any]) -> tuple[dict[str, bool], str]:
    """Return the settings that a sweep searches, True for a logarithmic scale, and its metric."""
    searched = {name: given for name, given in config["parameters"].items() if "value" not in given}
    scales = {name: "log" in given.get("distribution", "") for name, given in searched.items()}
    return scales, config.get("metric", {}).get("name", USUAL_METRIC)


def _curves(wr: Any) -> list[Any]:
    """Return panels of accuracy, loss, LR and speed over the epochs."""
    shown = [
        ("accuracy", ["train/accuracy", "val/accuracy", "test/accuracy"]),
        ("loss", ["train/loss", "val/loss", "test/loss"]),
        ("learning rate", ["lr"]),
        ("images per second", ["images_per_second"]),
    ]
    return [
        wr.LinePlot(title=title, x="epoch", y=metrics, layout=wr.Layout(x=HALF * (i % 2), y=8 * (i // 2), w=HALF, h=8))
        for i, (title, metrics) in enumerate(shown)
    ]


def _effects(wr: Any, settings: dict[str, bool], metric: str) -> list[Any]:
    """Return panels with parallel coordinates of settings and metric, and the importance of the settings."""
    column = wr.ParallelCoordinatesPlotColumn
    columns = [column(metric=wr.Config(name), log=is_log) for name, is_log in settings.items()]
    columns.append(column(metric=wr.SummaryMetric(metric)))
    return [
        wr.ParallelCoordinatesPlot(columns=columns, layout=wr.Layout(w=WIDTH, h=10)),
        wr.ParameterImportancePlot(with_respect_to=metric, layout=wr.Layout(y=10, w=WIDTH, h=8)),
    ]


def _table(wr: Any, name: str) -> Any:
    return wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=WIDTH, h=14))
