"""Entries of single images on pages: label, prediction, the most probable classes, and the place of the pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cifar10_accel.report.sprite import Sprite
from cifar10_accel.runs.predictions import Predictions

TOP = 3  # classes listed for each image


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """The predicted probability of one class."""

    name: str
    probability: float
    is_true: bool


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """One image of a page; `place` is (column, row) in the page's sprite, None without a picture."""

    place: tuple[int, int] | None
    index: int
    label: int
    prediction: int
    label_name: str
    predicted_name: str
    confidence: float
    loss: float
    top: tuple[ClassProbability, ...]

    @property
    def cell(self) -> str:
        """Name of the cell of the confusion matrix that the image is in."""
        return f"{self.label}-{self.prediction}"


def image_entries(
    predictions: Predictions, rows: Sequence[int], class_names: Sequence[str], sprite: Sprite | None
) -> list[ImageEntry]:
    """Return the entries of these rows, in their order; the sprite's places are by index in the test set."""
    top_classes = np.argsort(-predictions.probabilities[rows], axis=1, kind="stable")[:, :TOP]
    predicted, confidences = predictions.prediction, predictions.confidence
    return [
        ImageEntry(
            index=(index := int(predictions.index[row])),
            place=sprite.places.get(index) if sprite else None,
            label=(label := int(predictions.label[row])),
            prediction=(prediction := int(predicted[row])),
            label_name=class_names[label],
            predicted_name=class_names[prediction],
            confidence=float(confidences[row]),
            loss=float(predictions.loss[row]),
            top=tuple(
                ClassProbability(
                    name=class_names[k], probability=float(predictions.probabilities[row, k]), is_true=k == label
                )
                for k in classes.tolist()
            ),
        )
        for row, classes in zip(rows, top_classes, strict=True)
    ]


def most_confident_mistakes(predictions: Predictions) -> list[int]:
    """Return the rows of all misclassified images, the highest confidence first."""
    order = np.lexsort((-predictions.loss, -predictions.confidence))
    return [int(row) for row in order[~predictions.correct[order]]]


def most_typical_images(predictions: Predictions, *, per_class: int) -> list[int]:
    """Return the rows of the correctly classified images of lowest loss, up to `per_class` of each class in turn."""
    order = np.argsort(predictions.loss, kind="stable")
    correct = order[predictions.correct[order]]
    classes = range(predictions.probabilities.shape[1])
    return [int(row) for k in classes for row in correct[predictions.label[correct] == k][:per_class]]
