"""What a run leaves when it is done: final metrics, predictions, tables and pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from rich.table import Table
from torch import nn

from cifar10_accel.data.cifar10 import Dataset, Split
from cifar10_accel.dynamics import Dynamics
from cifar10_accel.engine import evaluate_pass
from cifar10_accel.errors import OutOfResourcesError
from cifar10_accel.metrics_log import read_metrics
from cifar10_accel.mirrors import in_one_line, warn
from cifar10_accel.pages.run import write_run_page
from cifar10_accel.pictures import draw_confusion, draw_curves, draw_grid
from cifar10_accel.predictions import Predictions, best_hits, worst_mistakes
from cifar10_accel.run_folder import RunFolder
from cifar10_accel.settings import RunSettings
from cifar10_accel.tracking import Tracker

NUM_TABLE_ROWS = 100  # images in each W&B table: enough to look through, small enough to upload
NUM_GRID_IMAGES = 40  # images in each picture


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Predictions on the test set, plain and with TTA, and on the hold-out, if there is one."""

    test: Predictions
    test_tta: Predictions | None
    val: Predictions | None
    val_tta: Predictions | None
    class_names: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """The final numbers under their metric names; accuracies are 0..1."""
        metrics = {"test/accuracy": self.test.accuracy(), "test/loss": self.test.mean_loss()}
        if self.test_tta is not None:
            metrics["test/accuracy_tta"] = self.test_tta.accuracy()
        if self.val is not None:
            metrics |= {"val/accuracy": self.val.accuracy(), "val/loss": self.val.mean_loss()}
        if self.val_tta is not None:
            metrics["val/accuracy_tta"] = self.val_tta.accuracy()
        for name, accuracy in zip(self.class_names, self.test.class_accuracy(), strict=True):
            if not math.isnan(accuracy):  # a class without test images, which a folder may have
                metrics[f"test/class_accuracy/{name}"] = float(accuracy)
        return metrics

    def table(self, title: str) -> Table:
        """Per-class accuracy and the most frequent confusion of each class, for a terminal."""
        table = Table("class", "accuracy", "most often taken for", title=title, title_justify="left")
        confusion = self.test.confusion_matrix()
        for row, (name, accuracy) in enumerate(zip(self.class_names, self.test.class_accuracy(), strict=True)):
            others = confusion[row].copy()
            others[row] = 0
            wrong = int(others.argmax())
            mistake = f"{self.class_names[wrong]} ({others[wrong]})" if others[wrong] else "-"
            table.add_row(name, f"{accuracy:.2%}", mistake)
        return table

    def headline(self, dataset_name: str) -> str:
        """Test accuracy plain and, beside it, with TTA."""
        tta = "" if self.test_tta is None else f", with TTA {self.test_tta.accuracy():.2%}"
        counted = len(self.test.label)
        return f"test accuracy {self.test.accuracy():.2%}{tta} ({counted:,} {labelled(dataset_name)} images)"


def labelled(dataset_name: str) -> str:
    """The data set's name as results show it: nobody may take a drawn set for the real one."""
    return {"cifar10": "CIFAR-10", "synthetic": "SYNTHETIC (not CIFAR-10)"}.get(dataset_name, dataset_name)


def evaluate_all(accelerator: Accelerator, net: nn.Module, dataset: Dataset, settings: RunSettings) -> Evaluation:
    """Evaluates on the test set and the hold-out. All ranks must call this; all get the same."""

    def measured(split: Split) -> tuple[Predictions, Predictions | None]:
        return evaluate_pass(accelerator, net, split, batch_size=settings.eval_batch_size, tta=settings.tta)

    test, test_tta = measured(dataset.test)
    val, val_tta = (None, None) if dataset.val is None else measured(dataset.val)
    return Evaluation(test=test, test_tta=test_tta, val=val, val_tta=val_tta, class_names=dataset.class_names)


def write_results(
    folder: RunFolder, tracker: Tracker, dataset: Dataset, evaluation: Evaluation, *, summary: dict[str, Any]
) -> dict[str, Any]:
    """Writes predictions, pictures, report.html, tables and, last, the summary, which it completes and returns.

    Only the main process may call this. Raises `OutOfResourcesError` if the folder cannot be written.
    """
    summary = summary | {"confusion_matrix": evaluation.test.confusion_matrix().tolist()}
    lines = read_metrics(folder.metrics)
    if evaluation.val is not None:
        summary["val/best_accuracy"] = max(line["val/accuracy"] for line in lines if "val/accuracy" in line)
    try:
        evaluation.test.save(folder.predictions)
        if evaluation.val is not None:
            evaluation.val.save(folder.val_predictions)
        _draw(folder, dataset, evaluation, lines)
        _write_page(folder, dataset, evaluation, lines, summary)
        folder.write_json("summary.json", summary)
    except OSError as error:
        raise OutOfResourcesError(
            f"{folder.path}: results cannot be written ({error}); make room, then the same command finishes"
        ) from error
    _log_images(tracker, "misclassified", dataset, evaluation.test, worst_mistakes(evaluation.test, NUM_TABLE_ROWS))
    _log_images(tracker, "correct", dataset, evaluation.test, best_hits(evaluation.test, NUM_TABLE_ROWS))
    tracker.log_summary(summary)
    return summary


def _write_page(
    folder: RunFolder, dataset: Dataset, evaluation: Evaluation, lines: list[dict[str, float]], summary: dict[str, Any]
) -> None:
    """report.html; whatever goes wrong with it costs one warning, not the run."""
    try:
        write_run_page(
            folder.report, name=folder.name(), settings=folder.settings().model_dump(mode="json"),
            environment=folder.read_json("environment.json"), summary=summary, lines=lines,
            class_names=dataset.class_names, test=evaluation.test, val=evaluation.val, images=dataset.test.images,
            dynamics=Dynamics.load(folder.dynamics) if folder.dynamics.exists() else None,
            training_images=dataset.train.images,
        )  # fmt: skip
    except Exception as error:
        warn(f"report.html was not written ({in_one_line(error)}); `cifar10-accel report {folder.path}` tries again")


def _draw(folder: RunFolder, dataset: Dataset, evaluation: Evaluation, lines: list[dict[str, float]]) -> None:
    test, headline = evaluation.test, evaluation.headline(dataset.name)
    draw_grid(
        dataset.test.images, test, worst_mistakes(test, NUM_GRID_IMAGES), dataset.class_names,
        folder.path / "misclassified.png", title=f"Worst mistakes: {headline}",
    )  # fmt: skip
    draw_grid(
        dataset.test.images, test, best_hits(test, NUM_GRID_IMAGES), dataset.class_names,
        folder.path / "correct.png", title=f"Most confident right answers: {headline}",
    )  # fmt: skip
    draw_confusion(test.confusion_matrix(), dataset.class_names, folder.path / "confusion.png", title=headline)
    draw_curves(lines, folder.path / "curves.png", title=f"{folder.path.name} on {labelled(dataset.name)}")


def _log_images(tracker: Tracker, name: str, dataset: Dataset, predictions: Predictions, rows: Sequence[int]) -> None:
    columns = ["image", "index", "true", "predicted", "confidence", "loss"]
    names = dataset.class_names
    table = [
        [
            dataset.test.images[row],
            int(row),
            names[predictions.label[row]],
            names[predictions.prediction[row]],
            float(predictions.confidence[row]),
            float(predictions.loss[row]),
        ]
        for row in rows
    ]
    tracker.log_table(name, columns, table)
