"""Results of a finished run: predictions, figures, report, summary and tables of images."""

import logging
from collections.abc import Sequence
from typing import Any

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.formatting import dataset_title, error_line
from cifar10_accel.report.curves import image_size_changes, with_cross_entropy
from cifar10_accel.report.figures import draw_confusion, draw_curves, draw_grid
from cifar10_accel.report.run_page import PageImages, write_run_page
from cifar10_accel.report.sprite import rgb
from cifar10_accel.runs.dynamics import Dynamics
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.predictions import Predictions, most_confident_correct, worst_mistakes
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.runs.saved_run import SavedRun
from cifar10_accel.tracking.tracker import Tracker
from cifar10_accel.training.evaluation import Evaluation

logger = logging.getLogger(__name__)

NUM_TABLE_ROWS = 100  # images in each W&B table, which is uploaded
NUM_GRID_IMAGES = 40  # images in each figure


def write_results(
    folder: RunFolder, tracker: Tracker, dataset: Dataset, evaluation: Evaluation, *, summary: dict[str, Any]
) -> None:
    """Write predictions, figures, report.html and, last, summary.json, and log tables of images.

    Only the main process may call this.

    Args:
        folder: The run folder.
        tracker: Receives the tables and the summary.
        dataset: The data set that was evaluated.
        evaluation: Predictions on the test set and the hold-out.
        summary: Final metrics of the run; the confusion matrix and the best hold-out accuracy are added.

    Raises:
        OutOfResourcesError: The folder cannot be written.
    """
    test, val = evaluation.test, evaluation.val
    metrics = read_metrics(folder.metrics)
    summary = summary | {"confusion_matrix": test.confusion_matrix().tolist()}
    if val is not None:
        summary["val/best_accuracy"] = max(row["val/accuracy"] for row in metrics if "val/accuracy" in row)
    try:
        test.save(folder.predictions)
        if val is not None:
            val.save(folder.val_predictions)
        _draw_figures(folder, dataset, evaluation, metrics)
        _write_report(folder, dataset, evaluation, metrics, summary)
        folder.write_json("summary.json", summary)
    except OSError as error:
        raise OutOfResourcesError(
            f"{folder.path}: results cannot be written ({error}); free some disk space and start it again"
        ) from error
    _log_images(tracker, "misclassified", dataset, test, worst_mistakes(test, NUM_TABLE_ROWS))
    _log_images(tracker, "correct", dataset, test, most_confident_correct(test, NUM_TABLE_ROWS))
    tracker.log_summary(summary)


def _write_report(
    folder: RunFolder,
    dataset: Dataset,
    evaluation: Evaluation,
    metrics: list[dict[str, float]],
    summary: dict[str, Any],
) -> None:
    """Write report.html; an error only logs a warning, since the run itself has succeeded."""
    try:
        run = SavedRun(
            folder=folder,
            settings=folder.settings(),
            environment=folder.read_json("environment.json"),
            summary=summary,
            metrics=metrics,
            test=evaluation.test,
            val=evaluation.val,
            dynamics=_read_dynamics(folder),
            missing=(),
        )
        write_run_page(folder.report, run, PageImages(test=dataset.test.images, train=dataset.train.images))
    except Exception as error:
        logger.warning(
            "report.html was not written (%s); `cifar10-accel report %s` tries again", error_line(error), folder.path
        )


def _draw_figures(folder: RunFolder, dataset: Dataset, evaluation: Evaluation, metrics: list[dict[str, float]]) -> None:
    test, headline, names = evaluation.test, evaluation.headline(dataset.name), dataset.class_names
    grids = {
        "misclassified.png": (worst_mistakes(test, NUM_GRID_IMAGES), f"Worst mistakes: {headline}"),
        "correct.png": (
            most_confident_correct(test, NUM_GRID_IMAGES),
            f"Most confident correct predictions: {headline}",
        ),
    }
    for name, (rows, title) in grids.items():
        draw_grid(dataset.test.images, test, rows, names, folder.path / name, title=title)
    draw_confusion(test.confusion_matrix(), names, folder.path / "confusion.png", title=headline)
    settings, dynamics = folder.settings(), _read_dynamics(folder)
    draw_curves(
        with_cross_entropy(metrics, dynamics, settings),
        folder.path / "curves.png",
        title=f"{folder.path.name} on {dataset_title(dataset.name)}",
        changes=image_size_changes(settings, folder.read_json("environment.json")),
    )


def _read_dynamics(folder: RunFolder) -> Dynamics | None:
    """Return the record of the training dynamics; None if there is none, or it is damaged."""
    try:
        return Dynamics.load(folder.dynamics)
    except InputError:
        return None


def _log_images(tracker: Tracker, name: str, dataset: Dataset, predictions: Predictions, rows: Sequence[int]) -> None:
    columns = ["image", "index", "true", "predicted", "confidence", "loss"]
    names = dataset.class_names
    table = [
        [
            rgb(dataset.test.images[row]),
            int(row),
            names[predictions.label[row]],
            names[predictions.prediction[row]],
            float(predictions.confidence[row]),
            float(predictions.loss[row]),
        ]
        for row in rows
    ]
    tracker.log_table(name, columns, table)
