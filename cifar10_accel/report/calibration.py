"""Calibration of predicted probabilities: reliability by bins of confidence, and temperature scaling.

Both as in Guo et al. 2017, 'On Calibration of Modern Neural Networks' (https://arxiv.org/abs/1706.04599).
N images, K classes, B bins.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float64]

NUM_BINS = 15
MAX_TEMPERATURE = 20.0  # 1 / this is the minimum; beyond either, all predictions have nearly the same confidence
TINY = float(np.finfo(np.float32).tiny)  # stands for a probability that was rounded to zero


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Images by confidence, in bins of equal width; a bin without images has nan for its means."""

    edges: Floats  # (B + 1,) from 0 to 1; a bin contains its upper edge, not its lower one
    counts: npt.NDArray[np.int64]  # (B,)
    confidence: Floats  # (B,) mean probability of the predicted class
    accuracy: Floats  # (B,) share of correct predictions

    def ece(self) -> float:
        """Return the expected calibration error, 0..1: mean |confidence - accuracy| by images; nan without images."""
        if not self.counts.sum():
            return math.nan
        gaps = np.abs(self.confidence - self.accuracy)
        return float(np.average(gaps[self.counts > 0], weights=self.counts[self.counts > 0]))


def reliability(probabilities: npt.ArrayLike, label: npt.ArrayLike, *, num_bins: int = NUM_BINS) -> Reliability:
    """Return the predictions in bins of confidence.

    Args:
        probabilities: Of each class, (N, K).
        label: True classes, (N,).
        num_bins: Number of bins, B.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    correct = (given.argmax(axis=1) == np.asarray(label)).astype(np.float64)
    confidence = given.max(axis=1)
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, correct))
    mean_confidence, accuracy = (np.where(counts > 0, total / np.maximum(counts, 1), np.nan) for total in sums)
    return Reliability(edges=edges, counts=counts, confidence=mean_confidence, accuracy=accuracy)


def negative_log_likelihood(probabilities: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the mean of -log p(true class), in nats."""
    given, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(label)
    return float(-np.log(np.maximum(given[np.arange(len(labels)), labels], TINY)).mean())


def scale_by_temperature(probabilities: npt.ArrayLike, temperature: float) -> Floats:
    """Return the probabilities (N, K) after division of the logits by the temperature.

    A temperature above 1 lowers the confidence; the order of the classes does not change. Log probabilities serve
    as logits: they differ from them by a constant per image, which cancels in softmax.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), TINY)) / temperature
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalized: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return normalized


def fit_temperature(probabilities: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the temperature with the lowest negative log-likelihood on these images.

    They must not be the images that the calibration is measured on. The result is between 1 / MAX_TEMPERATURE and
    MAX_TEMPERATURE, and near one of these where no temperature is best, as for a model without mistakes.
    """
    bound = math.log(MAX_TEMPERATURE)
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(scale_by_temperature(probabilities, math.exp(log_t)), label),
        bounds=(-bound, bound),
        method="bounded",
    )
    return math.exp(float(found.x))
