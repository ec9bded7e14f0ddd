"""A model's predictions for every image of a split, and the metrics computed from them."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar10_accel.errors import InputError
from cifar10_accel.files import load_arrays, save_arrays

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

Z_95 = 1.959963984540054  # 97.5% quantile of the normal distribution
ADVICE = "give a run's predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """One row per image: N images, K classes."""

    index: Ints  # (N,) position of the image in its split
    label: Ints  # (N,) true class
    probabilities: Floats  # (N, K)
    loss: Floats  # (N,) cross-entropy, in nats
    probabilities_tta: Floats | None = None  # (N, K) with test-time augmentation, if the run has it

    @property
    def prediction(self) -> Ints:
        """The most probable class of each image: (N,) int64; the first of equally probable ones."""
        most_probable: Ints = self.probabilities.argmax(axis=1)
        return most_probable

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Mask of the correctly classified images: (N,)."""
        correct: npt.NDArray[np.bool_] = self.prediction == self.label
        return correct

    @property
    def confidence(self) -> Floats:
        """The probability of the predicted class: (N,), 0..1."""
        highest: Floats = self.probabilities.max(axis=1)
        return highest

    def accuracy(self) -> float:
        """Return the share of correctly classified images, 0..1."""
        return float(self.correct.mean())

    def accuracy_interval(self) -> tuple[float, float]:
        """Return the 95% confidence interval of the accuracy by Wilson's score, 0..1.

        It is about the images: how far the accuracy on other images of the same kind may be from this one. Other seeds
        vary besides.
        """
        return wilson_interval(int(self.correct.sum()), len(self.label))

    def mean_loss(self) -> float:
        """Return the mean cross-entropy in nats, summed in float64."""
        return float(self.loss.mean(dtype=np.float64))

    def num_correct_tta(self) -> int | None:
        """Return the number of images that are classified correctly with TTA; None if the run has none."""
        if self.probabilities_tta is None:
            return None
        return int((self.probabilities_tta.argmax(axis=1) == self.label).sum())

    def confusion_matrix(self) -> Ints:
        """Return the counts of images by true class (row) and predicted class (column): (K, K) int64."""
        num_classes = self.probabilities.shape[1]
        cells = self.label * num_classes + self.prediction
        return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)

    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """Return the share of correctly classified images of each true class: (K,), NaN for a class without images."""
        confusion = self.confusion_matrix()
        sizes = confusion.sum(axis=1)
        return np.where(sizes > 0, confusion.diagonal() / np.maximum(sizes, 1), np.nan)

    def save(self, path: Path) -> None:
        """Write an npz of plain arrays atomically: index, label, prediction, probabilities, loss; probabilities_tta."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        save_arrays(path, arrays | {"prediction": self.prediction})

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read a file that `save` wrote; those of early versions have no probabilities with TTA.

        Raises:
            InputError: The file is missing, damaged or something else.
        """
        names = ("index", "label", "probabilities", "loss", "prediction")
        arrays = dict(load_arrays(path, names, what="predictions", advice=ADVICE, optional=["probabilities_tta"]))
        prediction = arrays.pop("prediction")
        loaded = cls(**arrays)
        loaded._require_agreement(path, prediction)
        return loaded

    def _require_agreement(self, path: Path, prediction: Ints) -> None:
        """Raise `InputError` unless the arrays have one length and the stored prediction follows from them."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        shapes = {name: array.shape for name, array in arrays.items()}
        dimensions = [2 if name.startswith("probabilities") else 1 for name in shapes]
        agree = [len(shape) for shape in shapes.values()] == dimensions and len({len(a) for a in arrays.values()}) == 1
        if not agree or not np.array_equal(self.prediction, prediction):
            raise InputError(f"{path}: its arrays do not belong together ({shapes}); {ADVICE}")


def wilson_interval(correct: int, num: int) -> tuple[float, float]:
    """Return the 95% confidence interval of an accuracy measured on `num` images (Wilson 1927).

    It is about other images of the same kind, not about other seeds. It stays within 0..1, also without any mistake.
    """
    z2 = Z_95**2
    share = correct / num
    middle = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z_95 * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2)) / (1 + z2 / num)
    return max(0.0, middle - half), min(1.0, middle + half)


def worst_mistakes(predictions: Predictions, limit: int) -> list[int]:
    """Return the rows of at most `limit` misclassified images, highest loss first."""
    order = np.argsort(-predictions.loss, kind="stable")
    return [int(row) for row in order[~predictions.correct[order]][:limit]]


def most_confident_correct(predictions: Predictions, limit: int) -> list[int]:
    """Return the rows of at most `limit` correctly classified images, most confident first."""
    order = np.argsort(predictions.loss, kind="stable")  # the loss still differs where the probability rounds to 100%
    return [int(row) for row in order[predictions.correct[order]][:limit]]


def changes(before: Predictions, after: Predictions) -> tuple[list[int], list[int]]:
    """Return the rows that only `after` classifies correctly, and those that only `before` does.

    Both must be predictions for the same images in the same order. Rows are sorted by the change of the true class's
    probability, largest first.
    """
    rows = np.arange(len(before.label))
    gain = after.probabilities[rows, before.label] - before.probabilities[rows, before.label]
    up, down = np.argsort(-gain, kind="stable"), np.argsort(gain, kind="stable")
    fixed, broken = ~before.correct & after.correct, before.correct & ~after.correct
    return up[fixed[up]].tolist(), down[broken[down]].tolist()
