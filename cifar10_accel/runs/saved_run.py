"""The content of a run folder, read file by file: a missing or damaged file is reported and is not fatal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import InputError, UserError
from cifar10_accel.runs.dynamics import Dynamics
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.relocate import data_dir_here, require_data
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run folder's content; `missing` has a sentence for each part that should be there and is not."""

    folder: RunFolder
    settings: Settings
    environment: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, float]]
    test: Predictions | None
    val: Predictions | None
    dynamics: Dynamics | None  # None if no epoch was finished, or in a run of an early version
    missing: tuple[str, ...]
    data_dir: Path | None = None  # of the data set now; None: where the run had it

    @classmethod
    def load(cls, path: Path, *, data_dir: Path | None = None) -> "SavedRun":
        """Read the run in a folder; it may still be running.

        Args:
            path: The run folder.
            data_dir: Folder of the data set; None: by the environment, else where the run had it.

        Raises:
            InputError: It is not a run folder.
        """
        folder = RunFolder(path)
        settings = folder.settings()
        environment, summary = folder.read_json("environment.json"), folder.read_json("summary.json")
        missing = [] if folder.is_finished() else [_describe_status(folder)]
        files = {"environment.json": environment, "summary.json": summary}
        missing += [f"{name} is missing or damaged" for name, values in files.items() if not values]

        def read(path: Path, load: Callable[[Path], T]) -> T | None:
            try:
                return load(path)
            except UserError as error:
                missing.append(str(error))
                return None

        val, dynamics = folder.val_predictions, folder.dynamics
        return cls(
            folder=folder,
            settings=settings,
            environment=environment,
            summary=summary,
            metrics=read(folder.metrics, read_metrics) or [],
            test=read(folder.predictions, _load_predictions),
            val=read(val, _load_predictions) if val.exists() else None,
            dynamics=read(dynamics, Dynamics.load) if dynamics.exists() else None,
            missing=tuple(missing),
            data_dir=data_dir_here(settings, data_dir),
        )

    def class_names(self) -> list[str]:
        """Return the names of the classes, or `class 0`, `class 1`, ... if the run has not recorded them."""
        num_classes = 0 if self.test is None else self.test.probabilities.shape[1]
        if self.dynamics is not None:
            num_classes = max(num_classes, self.dynamics.num_classes)
        recorded = self.recorded_classes()
        if len(recorded) == num_classes or self.test is None:
            return recorded
        return [f"class {number}" for number in range(num_classes)]

    def recorded_classes(self) -> list[str]:
        """Return the names of the classes that the run has recorded; none in a run of an early version."""
        recorded = self.environment.get("classes")
        return [str(name) for name in recorded] if isinstance(recorded, list) else []

    def dataset(self) -> Dataset:
        """Return the data set that the run was trained and tested on. Nothing is downloaded.

        Raises:
            InputError: It is not in `data_dir`, or is not the one that the run was tested on.
        """
        settings = self.settings.model_copy(update={"data_dir": self.data_dir or self.settings.data_dir})
        require_data(settings)
        dataset = load_dataset(settings, seed=settings.seed)
        names = self.recorded_classes()
        same_names = not names or names == list(dataset.class_names)
        if self.test is not None and not (same_names and _agree(self.test, dataset.test.labels)):
            raise InputError(
                f"the data set in {settings.data_dir} is not the one that this run was tested on; give its --data-dir"
            )
        return dataset


def _agree(predictions: Predictions, labels: npt.NDArray[np.int64]) -> bool:
    index = predictions.index
    inside = bool(((index >= 0) & (index < len(labels))).all())
    return inside and len(index) == len(labels) and np.array_equal(labels[index], predictions.label)


def _describe_status(folder: RunFolder) -> str:
    status = folder.read_json("status.json")
    state, reason = status.get("state"), status.get("reason")
    if state is None:
        return "status.json is missing or damaged, so the run may not have finished"
    return f"the run has not finished: {state}{f' ({reason})' if reason else ''}"


def _load_predictions(path: Path) -> Predictions:
    """Read predictions and require finite values and valid labels."""
    found = Predictions.load(path)
    values = [found.probabilities, found.loss, *([] if found.probabilities_tta is None else [found.probabilities_tta])]
    finite = all(np.isfinite(array).all() for array in values)
    if not finite or not len(found.label) or found.label.max() >= found.probabilities.shape[1] or found.label.min() < 0:
        raise InputError(
            f"{path}: no predictions, or values that are not finite; `cifar10-accel evaluate` computes them again"
        )
    return found
