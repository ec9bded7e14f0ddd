"""What pages say of single images: truth, answer, the most probable classes, and where their pixels are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cifar10_accel.pages.sprite import Sprite
from cifar10_accel.predictions import Predictions

TOP = 3  # classes said of each image


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class a net holds possible."""

    name: str
    share: float
    is_true: bool


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image of a page; `place` is (column, row) in the page's sprite, None without a picture."""

    place: tuple[int, int] | None
    index: int
    truth: int
    answer: int
    true_name: str
    answer_name: str
    confidence: float
    loss: float
    top: tuple[Guess, ...]

    @property
    def cell(self) -> str:
        """Names the cell of the confusion matrix that the image is in."""
        return f"{self.truth}-{self.answer}"


def shown(
    predictions: Predictions, rows: Sequence[int], class_names: Sequence[str], pictures: Sprite | None
) -> list[Shown]:
    """These rows, in their order; the sprite's numbers are places in the test set."""
    best = np.argsort(-predictions.probabilities[rows], axis=1, kind="stable")[:, :TOP]
    answers, confidences = predictions.prediction, predictions.confidence
    return [
        Shown(
            index=(index := int(predictions.index[row])),
            place=pictures.places.get(index) if pictures else None,
            truth=(truth := int(predictions.label[row])),
            answer=(answer := int(answers[row])),
            true_name=class_names[truth],
            answer_name=class_names[answer],
            confidence=float(confidences[row]),
            loss=float(predictions.loss[row]),
            top=tuple(
                Guess(name=class_names[k], share=float(predictions.probabilities[row, k]), is_true=k == truth)
                for k in classes.tolist()
            ),
        )
        for row, classes in zip(rows, best, strict=True)
    ]


def confident_mistakes(predictions: Predictions) -> list[int]:
    """Rows of all misclassified images, the surest answers first."""
    order = np.lexsort((-predictions.loss, -predictions.confidence))
    return [int(row) for row in order[~predictions.correct[order]]]


def confident_hits(predictions: Predictions, *, per_class: int) -> list[int]:
    """Rows of the rightly classified images of lowest loss, so many of each class, class by class."""
    order = np.argsort(predictions.loss, kind="stable")
    right = order[predictions.correct[order]]
    classes = range(predictions.probabilities.shape[1])
    return [int(row) for k in classes for row in right[predictions.label[right] == k][:per_class]]
