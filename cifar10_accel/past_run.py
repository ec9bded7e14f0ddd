"""What a run has left in its folder, read back piece by piece; what is missing or broken is said, not fatal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cifar10_accel.data import official
from cifar10_accel.data.cifar10 import Dataset, load
from cifar10_accel.dynamics import Dynamics
from cifar10_accel.errors import InputError, UserError
from cifar10_accel.metrics_log import read_metrics
from cifar10_accel.predictions import Predictions
from cifar10_accel.run_folder import RunFolder
from cifar10_accel.settings import Settings

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A run folder's content; `missing` says in sentences what should be there and is not."""

    folder: RunFolder
    settings: Settings
    environment: dict[str, Any]
    summary: dict[str, Any]
    lines: list[dict[str, float]]
    test: Predictions | None
    val: Predictions | None
    dynamics: Dynamics | None  # None for a run that has finished no epoch, or is older than they are
    missing: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, *, data_dir: Path | None = None) -> "PastRun":
        """The run in this folder, which may still be running. Raises `InputError` if it is not a run folder.

        data_dir: where the data set is now, if not where the run had it.
        """
        folder = RunFolder(path)
        settings = folder.settings()
        if data_dir is not None:
            settings = settings.model_copy(update={"data_dir": data_dir})
        environment, summary = folder.read_json("environment.json"), folder.read_json("summary.json")
        missing = [_unfinished(folder)] if not folder.is_finished() else []
        missing += [f"{name} is missing or broken" for name, values in
                    (("environment.json", environment), ("summary.json", summary)) if not values]  # fmt: skip
        return cls(
            folder=folder,
            settings=settings,
            environment=environment,
            summary=summary,
            lines=_or_missing(lambda: read_metrics(folder.metrics), missing) or [],
            test=_or_missing(lambda: _sound(folder.predictions), missing),
            val=_or_missing(lambda: _sound(folder.val_predictions), missing)
            if folder.val_predictions.exists() else None,
            dynamics=_or_missing(lambda: Dynamics.load(folder.dynamics), missing) if folder.dynamics.exists() else None,
            missing=tuple(missing),
        )  # fmt: skip

    def class_names(self) -> list[str]:
        """Of the classes of the predictions and dynamics, or numbers where the run has not recorded them."""
        num_classes = 0 if self.test is None else self.test.probabilities.shape[1]
        if self.dynamics is not None:
            num_classes = max(num_classes, self.dynamics.num_classes)
        recorded = self.environment.get("classes", [])
        if isinstance(recorded, list) and (len(recorded) == num_classes or self.test is None):
            return [str(name) for name in recorded]
        return [f"class {number}" for number in range(num_classes)]

    def dataset(self) -> Dataset:
        """The data set that the run was trained on and its predictions are about. Nothing is downloaded.

        Raises `InputError` if it is not at hand, or is not the one that the run was tested on.
        """
        where = self.settings.data_dir
        if self.settings.dataset in ("auto", "cifar10") and official.locate(where) is None:
            raise InputError(f"no pictures: there is no CIFAR-10 in {where}; `cifar10-accel data fetch` gets it")
        dataset = load(self.settings, seed=self.settings.seed)
        if self.test is not None and not _is_about(self.test, dataset.test.labels):
            raise InputError(f"no pictures: the data set in {where} is not the one that this run was tested on")
        return dataset


def _is_about(predictions: Predictions, labels: npt.NDArray[np.int64]) -> bool:
    index = predictions.index
    inside = bool(((index >= 0) & (index < len(labels))).all())
    return inside and np.array_equal(labels[index], predictions.label)


def _unfinished(folder: RunFolder) -> str:
    status = folder.read_json("status.json")
    state, reason = status.get("state"), status.get("reason")
    if state is None:
        return "status.json is missing or broken: whether the run has finished is not known"
    return f"the run has not finished: {state}{f' ({reason})' if reason else ''}"


def _sound(path: Path) -> Predictions:
    """Predictions whose numbers are finite and whose labels are classes."""
    found = Predictions.load(path)
    finite = np.isfinite(found.probabilities).all() and np.isfinite(found.loss).all()
    if not finite or not len(found.label) or found.label.max() >= found.probabilities.shape[1] or found.label.min() < 0:
        raise InputError(f"{path}: no predictions, or values that are not finite; `cifar10-accel evaluate` looks again")
    return found


def _or_missing(read: Callable[[], T], missing: list[str]) -> T | None:
    """What `read` gives; None, and its reason noted, where a user error says why it cannot."""
    try:
        return read()
    except UserError as error:
        missing.append(str(error))
        return None
