"""report.html: results of one run, from learning curves to single mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from markupsafe import Markup

from cifar10_accel.formatting import format_value
from cifar10_accel.report import calibration
from cifar10_accel.report.charts import bar_chart, reliability_chart
from cifar10_accel.report.curves import run_curves
from cifar10_accel.report.dynamics import dynamics_context
from cifar10_accel.report.grad_cam import GradCamGallery, grad_cam_context
from cifar10_accel.report.images import ImageEntry, image_entries, most_confident_mistakes, most_typical_images
from cifar10_accel.report.page import write_page
from cifar10_accel.report.robustness import robustness_context
from cifar10_accel.report.sprite import Pixels, make_sprite
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.saved_run import SavedRun
from cifar10_accel.settings import (
    DataSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    ScheduleSettings,
    Settings,
    TrackingSettings,
)

MAX_MISTAKES = 2000  # fewer where their pictures do not fit into the sprite
MAX_TYPICAL = 70  # correctly classified images; of ten classes seven each, which is one row
SECTIONS: dict[str, Any] = {
    "Data": DataSettings,
    "Model": ModelSettings,
    "Optimizer": OptimSettings,
    "Schedule": ScheduleSettings,
    "Run": RunSettings,
    "Tracking": TrackingSettings,
}


@dataclass(frozen=True, kw_only=True)
class PageImages:
    """Pixels for the pictures of a run's page, each (N, 32, 32, 3) uint8; None where they are not available."""

    test: Pixels | None = None  # the whole test set
    train: Pixels | None = None  # the whole training split that the dynamics are about
    grad_cam: GradCamGallery | None = None


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A cell of the confusion matrix; `tint` is the strength of its colour, in percent."""

    name: str
    title: str
    count: int
    is_correct: bool
    tint: int


@dataclass(frozen=True, kw_only=True)
class _CalibrationRow:
    """Calibration on the test set, as trained or after temperature scaling."""

    name: str
    ece: float
    loss: float  # negative log-likelihood, in nats
    chart: Markup


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """A setting with its value and its default, as text."""

    name: str
    value: str
    default: str

    @property
    def is_changed(self) -> bool:
        return self.value != self.default


def write_run_page(path: Path, run: SavedRun, images: PageImages) -> None:
    """Write the page of a run, with as much as there is to show.

    Args:
        path: File to write.
        run: Content of the run's folder; what is missing in it is listed at the top of the page.
        images: Pixels for the pictures.

    Raises:
        OSError: The file cannot be written.
    """
    class_names, test = run.class_names(), run.test
    robustness = run.folder.read_json("robustness.json")
    sheet = run.folder.read_bytes("robustness.png")
    gallery = images.grad_cam if test is not None else None
    write_page(
        path,
        "run",
        name=run.folder.name(),
        dataset=str(run.summary.get("dataset", run.settings.dataset)),
        settings=run.settings,
        environment=_environment_entries(run.environment),
        summary=run.summary,
        device=run.environment.get("device"),
        curves=run_curves(run.metrics),
        missing=run.missing,
        class_names=class_names,
        setting_groups=_setting_groups(run.settings),
        test=test,
        training=dynamics_context(run.dynamics, class_names, images.train) if run.dynamics is not None else None,
        robustness=robustness_context(robustness, sheet) if robustness else None,
        grad_cam=grad_cam_context(gallery, test, class_names) if gallery and test is not None else None,
        **(_predictions_context(test, class_names, images.test) if test is not None else {}),
        **(_calibration_context(test, run.val) if test is not None else {}),
    )


def _predictions_context(test: Predictions, class_names: Sequence[str], images: Pixels | None) -> dict[str, Any]:
    """Return accuracies by class, confusion matrix, mistakes and typical images."""
    mistakes = most_confident_mistakes(test)
    typical = most_typical_images(test, per_class=max(1, MAX_TYPICAL // max(1, len(class_names))))[:MAX_TYPICAL]
    shown = mistakes[:MAX_MISTAKES]
    sprite = None
    if images is not None:
        sprite = make_sprite(images, [int(test.index[row]) for row in typical + shown])
        shown = [row for row in shown if int(test.index[row]) in sprite.places]
    by_class: dict[str, list[ImageEntry]] = {}
    for entry in image_entries(test, typical, class_names, sprite):
        by_class.setdefault(entry.label_name, []).append(entry)
    return {
        "classes": _class_chart(test, class_names),
        "matrix": _confusion_cells(test, class_names),
        "num_mistakes": len(mistakes),
        "mistakes": image_entries(test, shown, class_names, sprite),
        "typical": by_class,
        "sprite": sprite,
    }


def _class_chart(test: Predictions, class_names: Sequence[str]) -> Markup:
    """Return the accuracy of each class, with its most frequent incorrect prediction."""
    notes = []
    for label, counts in enumerate(test.confusion_matrix()):
        others = counts.copy()
        others[label] = 0
        mistake = int(others.argmax())
        notes.append(f"{others[mistake]} predicted as {class_names[mistake]}" if others[mistake] else "")
    return bar_chart(class_names, test.class_accuracy().tolist(), notes, title="Accuracy by class")


def _confusion_cells(test: Predictions, class_names: Sequence[str]) -> list[list[_Cell]]:
    """Return the confusion matrix, rows true; correct and incorrect predictions have separate colour scales."""
    counts = test.confusion_matrix()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    worst = max((float(shares[i, j]) for i, j in zip(*counts.nonzero(), strict=True) if i != j), default=1.0)
    return [
        [
            _Cell(
                name=f"{i}-{j}",
                count=int(count),
                is_correct=i == j,
                title=f"{class_names[i]} predicted as {class_names[j]}" if i != j else f"{class_names[i]}, correct",
                tint=round(100 * float(shares[i, j]) / (1.0 if i == j else worst)),
            )
            for j, count in enumerate(row)
        ]
        for i, row in enumerate(counts)
    ]


def _calibration_context(test: Predictions, val: Predictions | None) -> dict[str, Any]:
    """Return the calibration as trained and, with a hold-out, after temperature scaling fitted on it."""
    rows = [_calibration_row("as trained", test.probabilities, test)]
    temperature = None
    if val is not None:
        temperature = calibration.fit_temperature(val.probabilities, val.label)
        scaled = calibration.scale_by_temperature(test.probabilities, temperature)
        rows.append(_calibration_row(f"with temperature {temperature:.3f}", scaled, test))
    return {"calibration": rows, "temperature": temperature, "num_val": 0 if val is None else len(val.label)}


def _calibration_row(name: str, probabilities: npt.ArrayLike, test: Predictions) -> _CalibrationRow:
    bins = calibration.reliability(probabilities, test.label)
    return _CalibrationRow(
        name=name,
        ece=bins.ece(),
        loss=calibration.negative_log_likelihood(probabilities, test.label),
        chart=reliability_chart(bins, title=f"Reliability {name}"),
    )


def _setting_groups(settings: Settings) -> dict[str, list[_Setting]]:
    """Return the settings under the headings of settings.py; fields of no section come last."""
    values = settings.model_dump(mode="json")
    names = {heading: list(section.model_fields) for heading, section in SECTIONS.items()}
    in_a_section = {name for section in names.values() for name in section}
    names["Recipe"] = [name for name in values if name not in in_a_section]
    return {heading: [_setting(name, values[name]) for name in group] for heading, group in names.items() if group}


def _setting(name: str, value: Any) -> _Setting:
    default = Settings.model_fields[name].default
    return _Setting(name=name, value=format_value(value), default=format_value(default))


def _environment_entries(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment as text, each package's version as an entry of its own."""
    values = {name: value for name, value in environment.items() if name not in ("classes", "packages")}
    if isinstance(values.get("command"), list):
        values["command"] = " ".join(map(str, values["command"]))
    values |= environment.get("packages") or {}
    return {name: format_value(value) for name, value in values.items() if value == value}  # without nan
