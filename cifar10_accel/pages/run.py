"""report.html: what one run learned, and what it gets wrong."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cifar10_accel import calibration
from cifar10_accel.dynamics import Dynamics
from cifar10_accel.pages.charts import bars, reliability
from cifar10_accel.pages.curves import Lines, run_curves
from cifar10_accel.pages.dynamics import of_dynamics
from cifar10_accel.pages.grad_cam import Looks, of_looks
from cifar10_accel.pages.images import Shown, confident_hits, confident_mistakes, shown
from cifar10_accel.pages.page import word, write_page
from cifar10_accel.pages.robustness import of_robustness
from cifar10_accel.pages.sprite import Pixels, sprite
from cifar10_accel.predictions import Predictions
from cifar10_accel.settings import (
    DataSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    ScheduleSettings,
    Settings,
    TrackingSettings,
)  # fmt: skip

MOST_MISTAKES = 2000  # with pictures that compress well; else as many as fit into the sprite
MOST_HITS = 70  # which of ten classes is a line each
SECTIONS: dict[str, Any] = {
    "Data": DataSettings, "Model": ModelSettings, "Optimizer": OptimSettings, "Schedule": ScheduleSettings,
    "Run": RunSettings, "Tracking": TrackingSettings,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A cell of the confusion matrix; `part` is how strong its colour is, in percent."""

    name: str
    title: str
    count: int
    is_right: bool
    part: int


@dataclass(frozen=True, kw_only=True)
class _Calibrated:
    """How well confidence fits accuracy, as it is or after a temperature."""

    name: str
    ece: float
    loss: float
    chart: Markup


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """A setting as the page shows it."""

    name: str
    value: str
    default: str

    @property
    def is_changed(self) -> bool:
        return self.value != self.default


def write_run_page(
    path: Path,
    *,
    name: str,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    summary: Mapping[str, Any],
    lines: Lines,
    class_names: Sequence[str],
    test: Predictions | None,
    val: Predictions | None,
    images: Pixels | None,
    dynamics: Dynamics | None = None,
    training_images: Pixels | None = None,
    robustness: Mapping[str, Any] | None = None,
    robustness_sheet: bytes | None = None,
    looks: Looks | None = None,
    missing: Sequence[str] = (),
) -> None:
    """Writes the page of a run, as much of it as there is to show.

    settings: by name, as plain values; lines: of metrics.jsonl; test, val: predictions for the test set and
    the hold-out, class_names of their classes; images: the whole test set, (N, 32, 32, 3) uint8;
    dynamics: of the training split, whose images are training_images; robustness: as in robustness.json, with
    the PNG beside it; looks: heat maps of some mistakes; missing: what
    the page shall say is not in it. Raises OSError if the file cannot be written.
    """
    dataset = str(summary.get("dataset", settings.get("dataset", "an unknown data set")))
    write_page(
        path, "run", name=name, dataset=dataset, settings=settings, environment=_flat(environment), summary=summary,
        device=environment.get("device"), curves=run_curves(lines), missing=missing, class_names=class_names,
        sections=_settings_sections(settings), test=test,
        training=of_dynamics(dynamics, class_names, training_images) if dynamics is not None else None,
        robustness=of_robustness(robustness, robustness_sheet) if robustness else None,
        looks=of_looks(looks, test, class_names) if looks is not None and test is not None else None,
        **(_of_predictions(test, class_names, images) if test is not None else {}),
        **(_of_calibration(test, val) if test is not None else {}),
    )  # fmt: skip


def _of_predictions(test: Predictions, class_names: Sequence[str], images: Pixels | None) -> dict[str, Any]:
    """What the test predictions give the template: bars, matrix, and the images they are about."""
    mistakes = confident_mistakes(test)
    hits = confident_hits(test, per_class=max(1, MOST_HITS // max(1, len(class_names))))[:MOST_HITS]
    kept = mistakes[:MOST_MISTAKES]
    pictures = None
    if images is not None:
        pictures = sprite(images, [int(test.index[row]) for row in hits + kept])
        kept = [row for row in kept if int(test.index[row]) in pictures.places]
    return {
        "classes": _class_bars(test, class_names),
        "matrix": _matrix(test, class_names),
        "num_mistakes": len(mistakes),
        "mistakes": shown(test, kept, class_names, pictures),
        "hits": _by_class(shown(test, hits, class_names, pictures)),
        "pictures": pictures,
    }


def _by_class(hits: Sequence[Shown]) -> dict[str, list[Shown]]:
    found: dict[str, list[Shown]] = {}
    for hit in hits:
        found.setdefault(hit.true_name, []).append(hit)
    return found


def _class_bars(test: Predictions, class_names: Sequence[str]) -> Markup:
    """The accuracy of each class, and what it is most often taken for."""
    notes = []
    for truth, counts in enumerate(test.confusion_matrix()):
        others = counts.copy()
        others[truth] = 0
        taken = int(others.argmax())
        notes.append(f"{others[taken]} taken for {class_names[taken]}" if others[taken] else "")
    return bars(class_names, test.class_accuracy().tolist(), notes, title="Accuracy by class")


def _matrix(test: Predictions, class_names: Sequence[str]) -> list[list[_Cell]]:
    """Rows true, columns predicted; right answers and mistakes have a scale of colour each."""
    counts = test.confusion_matrix()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    worst = max((float(shares[i, j]) for i, j in zip(*counts.nonzero(), strict=True) if i != j), default=1.0)
    return [
        [
            _Cell(
                name=f"{i}-{j}", count=int(count), is_right=i == j,
                title=f"{class_names[i]} taken for {class_names[j]}" if i != j else f"{class_names[i]}, recognised",
                part=round(100 * float(shares[i, j]) / (1.0 if i == j else worst)),
            )
            for j, count in enumerate(row)
        ]
        for i, row in enumerate(counts)
    ]  # fmt: skip


def _of_calibration(test: Predictions, val: Predictions | None) -> dict[str, Any]:
    """Reliability as the net is and, if there is a hold-out to fit a temperature on, with that."""
    calibrated = [_calibrated("as trained", test.probabilities, test)]
    temperature = None
    if val is not None:
        temperature = calibration.fit_temperature(val.probabilities, val.label)
        scaled = calibration.scaled(test.probabilities, temperature)
        calibrated.append(_calibrated(f"with temperature {temperature:.3f}", scaled, test))
    return {"calibrated": calibrated, "temperature": temperature, "num_val": 0 if val is None else len(val.label)}


def _calibrated(name: str, probabilities: Any, test: Predictions) -> _Calibrated:
    found = calibration.reliability(probabilities, test.label)
    chart = reliability(
        found.edges.tolist(), found.counts.tolist(), found.confidence.tolist(), found.accuracy.tolist(),
        title=f"Reliability {name}",
    )  # fmt: skip
    loss = calibration.negative_log_likelihood(probabilities, test.label)
    return _Calibrated(name=name, ece=found.ece(), loss=loss, chart=chart)


def _settings_sections(settings: Mapping[str, Any]) -> dict[str, list[_Setting]]:
    """The settings under the headings of settings.py; what it does not know comes last."""
    names = {heading: list(section.model_fields) for heading, section in SECTIONS.items()}
    known = {name for section in names.values() for name in section}
    names["Recipe"] = [name for name in settings if name not in known]
    return {
        heading: [_setting(name, settings[name]) for name in section if name in settings]
        for heading, section in names.items()
        if any(name in settings for name in section)
    }


def _setting(name: str, value: Any) -> _Setting:
    field = Settings.model_fields.get(name)
    return _Setting(name=name, value=word(value), default=word(field.default) if field else "")


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    """The environment as words; versions of packages as entries of their own."""
    found = dict(environment)
    found.pop("classes", None)
    packages = found.pop("packages", None) or {}
    if isinstance(found.get("command"), list):
        found["command"] = " ".join(map(str, found["command"]))
    return {name: word(value) for name, value in (found | packages).items() if not _is_nan(value)}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
