"""Evaluate several runs as one: the mean of their probabilities on the test set, plain and with TTA."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from cifar10_accel.commands.evaluate import LoadedRun, load_trained_run
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.errors import InputError
from cifar10_accel.formatting import dataset_title
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.run_folder import locate_checkpoint
from cifar10_accel.training.evaluation import evaluate_dataset


@dataclass(frozen=True, kw_only=True)
class Member:
    """A run, or the ensemble itself, with its predictions for the test set."""

    name: str
    test: Predictions
    test_tta: Predictions | None

    def metrics(self) -> dict[str, Any]:
        """Return the metrics under the names that `evaluate` has for them, with the 95% interval of each accuracy."""
        metrics: dict[str, Any] = {"test/loss": self.test.mean_loss()}
        for name, predictions in (("test/accuracy", self.test), ("test/accuracy_tta", self.test_tta)):
            if predictions is not None:
                metrics |= {name: predictions.accuracy(), f"{name}_interval": predictions.accuracy_interval()}
        return metrics


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The members and the mean of their probabilities."""

    members: tuple[Member, ...]
    mean: Member
    dataset: str

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the ensemble, as of a single run, and those of each member."""
        members = [{"run": member.name} | member.metrics() for member in self.members]
        return self.mean.metrics() | {"members": members}

    def table(self) -> Table:
        """Return a terminal table of the members, their mean and the ensemble."""
        num_images = len(self.mean.test.label)
        table = Table(title=f"{dataset_title(self.dataset)} test set, {num_images:,} images", title_justify="left")
        table.add_column("run", overflow="fold")
        has_tta = any(member.test_tta is not None for member in self.members)
        for name in ("accuracy", "95% interval", *(("with TTA", "95% interval") if has_tta else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for member in self.members:
            table.add_row(member.name, *_cells(member, has_tta=has_tta))
        table.add_section()
        table.add_row("mean of the runs", *self._mean_cells(has_tta=has_tta))
        table.add_row("ensemble", *_cells(self.mean, has_tta=has_tta))
        return table

    def headline(self) -> str:
        """Return the accuracy of the ensemble, plain and with TTA, as text."""
        tta = self.mean.test_tta
        with_tta = f", with TTA {tta.accuracy():.2%}" if tta is not None else ""
        if tta is None and any(member.test_tta is not None for member in self.members):
            with_tta = "; no TTA for the ensemble, since not all runs have it: give --tta flip or multicrop"
        return f"ensemble of {len(self.members)}: test accuracy {self.mean.test.accuracy():.2%}{with_tta}"

    def _mean_cells(self, *, has_tta: bool) -> list[str]:
        cells = [f"{np.mean([member.test.accuracy() for member in self.members]):.2%}", ""]
        if has_tta:
            averaged = [member.test_tta.accuracy() for member in self.members if member.test_tta is not None]
            cells += [f"{np.mean(averaged):.2%}" if len(averaged) == len(self.members) else "-", ""]
        return cells


def evaluate_ensemble(sources: Sequence[Path], *, overrides: dict[str, str]) -> Ensemble:
    """Evaluate runs of one data set, one after the other, and their ensemble. All ranks must call this.

    Args:
        sources: Run folders or checkpoints in them, two or more.
        overrides: Settings that win over those of the runs: data_dir, tta, eval_batch_size, precision.

    Raises:
        InputError: A source is no run, is given twice, or was trained on another data set than the first.
    """
    _require_one_dataset(sources)
    members: list[Member] = []
    first: Dataset | None = None
    for source in sources:
        run = load_trained_run(source, overrides=overrides)
        dataset = run.setup.dataset
        first = first or dataset
        _require_same_test_set(sources[0], first, source, dataset)
        members.append(_evaluate(run, str(source)))
    assert first is not None
    return Ensemble(members=tuple(members), mean=_mean_of(members), dataset=first.name)


def _evaluate(run: LoadedRun, name: str) -> Member:
    setup = run.setup
    test_only = replace(setup.dataset, val=None)  # each run has a hold-out of its own
    evaluation = evaluate_dataset(setup.accelerator, run.model, test_only, setup.settings)
    return Member(name=name, test=evaluation.test, test_tta=evaluation.test_tta)


def _mean_of(members: Sequence[Member]) -> Member:
    averaged = [member.test_tta for member in members if member.test_tta is not None]
    has_tta = len(averaged) == len(members)
    return Member(
        name="ensemble",
        test=mean_predictions([member.test for member in members]),
        test_tta=mean_predictions(averaged) if has_tta else None,
    )


def mean_predictions(predictions: Sequence[Predictions]) -> Predictions:
    """Return the mean of the probabilities of several models for the same images, summed in float64.

    The loss is the cross-entropy of the mean, which is never higher than the mean of the losses.
    """
    first = predictions[0]
    stacked = np.stack([each.probabilities for each in predictions])
    mean: npt.NDArray[np.float64] = stacked.mean(axis=0, dtype=np.float64)
    of_label = mean[np.arange(len(first.label)), first.label]
    loss: npt.NDArray[np.float64] = -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))
    return Predictions(first.index, first.label, mean.astype(np.float32), loss.astype(np.float32))


def _require_one_dataset(sources: Sequence[Path]) -> None:
    """Raise `InputError` for what is wrong with the runs by their folders alone, before any of them is evaluated."""
    seen, first = set[Path](), ""
    for source in sources:
        if source.resolve() in seen:
            raise InputError(f"{source}: given twice; an ensemble needs different runs")
        seen.add(source.resolve())
        dataset = locate_checkpoint(source)[0].settings().dataset
        first = first or dataset
        if dataset != first:
            reason = f"trained on {dataset_title(dataset)} and {sources[0]} on {dataset_title(first)}"
            raise InputError(f"{source}: {reason}; an ensemble needs runs of one data set")


def _require_same_test_set(first: Path, wanted: Dataset, other: Path, found: Dataset) -> None:
    """Raise `InputError` unless both runs are tested on the same images and have the same classes in one order."""
    if wanted.class_names != found.class_names:
        raise InputError(f"{other}: its classes are not those of {first}; an ensemble needs runs of one data set")
    same_labels = np.array_equal(wanted.test.labels, found.test.labels)
    same_shape = wanted.test.images.shape == found.test.images.shape
    # The same images may have been read at another size for each run.
    if not same_labels or (same_shape and not np.array_equal(wanted.test.images, found.test.images)):
        hint = "; synthetic images depend on the seed" if found.name == "synthetic" else ""
        raise InputError(
            f"{other}: tested on other images than {first}{hint}; an ensemble needs runs with the same test set"
        )


def _cells(member: Member, *, has_tta: bool) -> list[str]:
    cells = []
    for predictions in (member.test, member.test_tta)[: 2 if has_tta else 1]:
        if predictions is None:
            cells += ["-", "-"]
        else:
            low, high = predictions.accuracy_interval()
            cells += [f"{predictions.accuracy():.2%}", f"{100 * low:.2f}-{100 * high:.2f}"]
    return cells
