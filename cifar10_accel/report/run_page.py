"""report.html: results of one run, from learning curves to single mistakes."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from markupsafe import Markup

from cifar10_accel.formatting import dataset_title, format_value
from cifar10_accel.report import calibration
from cifar10_accel.report.charts import reliability_chart
from cifar10_accel.report.classes import classes_context
from cifar10_accel.report.curves import image_size_changes, run_curves, with_cross_entropy
from cifar10_accel.report.dynamics import dynamics_context
from cifar10_accel.report.grad_cam import GradCamGallery, grad_cam_context
from cifar10_accel.report.images import ImageEntry, image_entries, most_confident_mistakes, most_typical_images
from cifar10_accel.report.page import write_page
from cifar10_accel.report.robustness import robustness_context
from cifar10_accel.report.sprite import Pixels, make_sprite
from cifar10_accel.runs.predictions import Predictions, wilson_interval
from cifar10_accel.runs.reproduce import reproduction
from cifar10_accel.runs.saved_run import SavedRun
from cifar10_accel.settings import (
    CallbackSettings,
    DataSettings,
    FineTuningSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    ScheduleSettings,
    Settings,
    TrackingSettings,
)

MAX_MISTAKES = 2000  # fewer where their pictures do not fit into the sprite
MAX_TYPICAL = 70  # correctly classified images; of ten classes seven each, which is one row
MAX_HEADINGS = 20  # classes with a heading each in the list of typical images
NOT_LISTED = ("classes", "command", "images", "packages")  # of environment.json; shown elsewhere or in another form
SECTIONS: dict[str, Any] = {
    "Data": DataSettings,
    "Model": ModelSettings,
    "Fine tuning": FineTuningSettings,
    "Optimizer": OptimSettings,
    "Schedule": ScheduleSettings,
    "Run": RunSettings,
    "Callbacks": CallbackSettings,
    "Tracking": TrackingSettings,
}


@dataclass(frozen=True, kw_only=True)
class PageImages:
    """Pixels for the pictures of a run's page, each (N, S, S, 1 or 3) uint8; None where they are not available."""

    test: Pixels | None = None  # the whole test set
    train: Pixels | None = None  # the whole training split that the dynamics are about
    grad_cam: GradCamGallery | None = None
    no_grad_cam: str = ""  # why there are no Grad-CAM maps although they were asked for


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
    metrics = with_cross_entropy(run.metrics, run.dynamics, run.settings)
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
        started_by=shlex.join(map(str, run.environment.get("command") or [])),
        reproduction=reproduction(run.settings, run.environment),
        machine=_machine_facts(run.environment),
        summary=run.summary,
        headline=_headline(run),
        curves=run_curves(metrics, image_size_changes(run.settings, run.environment)),
        missing=run.missing,
        class_names=class_names,
        setting_groups=(groups := _setting_groups(run.settings)),
        changed_settings=[setting for group in groups.values() for setting in group if setting.is_changed],
        test=test,
        training=dynamics_context(run.dynamics, class_names, images.train) if run.dynamics is not None else None,
        robustness=robustness_context(robustness, sheet) if robustness else None,
        grad_cam=grad_cam_context(gallery, test, class_names) if gallery and test is not None else None,
        no_grad_cam=images.no_grad_cam,
        **(_predictions_context(test, class_names, images.test) if test is not None else {}),
        **(_calibration_context(test, run.val) if test is not None else {}),
    )


def _headline(run: SavedRun) -> dict[str, str]:
    """Return a note for each test accuracy, plain and with TTA: the counts and the confidence interval."""
    test = run.test
    if test is None:
        return {"plain": "", "tta": run.settings.tta}
    num, correct_tta = len(test.label), test.num_correct_tta()
    if correct_tta is None and "test/accuracy_tta" in run.summary:  # a run of an early version
        correct_tta = round(run.summary["test/accuracy_tta"] * num)
    title = dataset_title(str(run.summary.get("dataset", run.settings.dataset)))
    return {
        "plain": f"{test.correct.sum():,} of {num:,} {title} test images, {_interval(int(test.correct.sum()), num)}",
        "tta": run.settings.tta + ("" if correct_tta is None else f", {_interval(correct_tta, num)}"),
    }


def _interval(correct: int, num: int) -> str:
    low, high = wilson_interval(correct, num)
    return f"95% interval {low:.2%} to {high:.2%}"


def _machine_facts(environment: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and note of the device and the date, as far as they were recorded."""
    device, facts = environment.get("device"), []
    if device:
        cores = [_counted(environment["cpu_cores"], "CPU core")] if environment.get("cpu_cores") else []
        threads = [_counted(environment["threads"], "thread")] if environment.get("threads") and device == "cpu" else []
        notes = [*([str(environment["cpu"])] if environment.get("cpu") else []), *cores, *threads]
        facts.append(("device", str(device), ", ".join(notes)))
    if environment.get("date"):
        day, _, time = str(environment["date"]).partition("T")
        host = f"on {environment['host']}" if environment.get("host") else ""
        facts.append(("started", day, f"{time[:5]} {host}".strip()))
    return facts


def _counted(count: Any, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _predictions_context(test: Predictions, class_names: Sequence[str], images: Pixels | None) -> dict[str, Any]:
    """Return errors by class, confusions, mistakes and typical images."""
    mistakes = most_confident_mistakes(test)
    num_typical = max(MAX_TYPICAL, min(len(class_names), 2 * MAX_TYPICAL))
    typical = most_typical_images(test, per_class=max(1, num_typical // max(1, len(class_names))))[:num_typical]
    shown = mistakes[:MAX_MISTAKES]
    sprite = None
    if images is not None:
        sprite = make_sprite(images, [int(test.index[row]) for row in typical + shown])
        shown = [row for row in shown if int(test.index[row]) in sprite.places]
    by_class: dict[str, list[ImageEntry]] = {}
    has_headings = len(class_names) <= MAX_HEADINGS
    for entry in image_entries(test, typical, class_names, sprite):
        by_class.setdefault(entry.label_name if has_headings else "", []).append(entry)
    return {
        **classes_context(test, class_names),
        "num_mistakes": len(mistakes),
        "mistakes": image_entries(test, shown, class_names, sprite),
        "typical": by_class,
        "num_typical": len(typical),
        "sprite": sprite,
    }


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
    """Return the settings under the headings of their sections; fields of no section come last."""
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
    values = {name: value for name, value in environment.items() if name not in NOT_LISTED}
    values |= environment.get("packages") or {}
    return {name: format_value(value) for name, value in values.items() if value == value}  # without nan
