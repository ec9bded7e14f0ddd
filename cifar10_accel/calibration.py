"""How far the confidence of a net can be believed: reliability by bins, and one temperature that mends it.

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
HIGHEST_TEMPERATURE = 20.0  # and 1 / this the lowest: beyond either, all answers are alike sure
TINY = float(np.finfo(np.float32).tiny)  # stands for a probability that was rounded to zero


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Images by confidence, in bins of equal width; a bin without images has nan for its means."""

    edges: Floats  # (B + 1,) from 0 to 1; a bin has its upper edge, not its lower
    counts: npt.NDArray[np.int64]  # (B,)
    confidence: Floats  # (B,) mean probability of the predicted class
    accuracy: Floats  # (B,) share that was right

    def ece(self) -> float:
        """The expected calibration error, 0..1: the mean gap of confidence and accuracy, by images; nan for none."""
        if not self.counts.sum():
            return math.nan
        gaps = np.abs(self.confidence - self.accuracy)
        return float(np.average(gaps[self.counts > 0], weights=self.counts[self.counts > 0]))


def reliability(probabilities: npt.ArrayLike, label: npt.ArrayLike, *, num_bins: int = NUM_BINS) -> Reliability:
    """The bins of predictions: probabilities (N, K), true classes (N,)."""
    shares = np.asarray(probabilities, dtype=np.float64)
    right = (shares.argmax(axis=1) == np.asarray(label)).astype(np.float64)
    confidence = shares.max(axis=1)
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, right))
    claimed, true = (np.where(counts > 0, total / np.maximum(counts, 1), np.nan) for total in sums)
    return Reliability(edges=edges, counts=counts, confidence=claimed, accuracy=true)


def negative_log_likelihood(probabilities: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """The mean of -log p(true class), in nats."""
    shares, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(label)
    return float(-np.log(np.maximum(shares[np.arange(len(truth)), truth], TINY)).mean())


def scaled(probabilities: npt.ArrayLike, temperature: float) -> Floats:
    """The probabilities (N, K) that logits divided by the temperature give: above 1 less sure, order unchanged.

    Log probabilities serve as logits: they differ from them by a constant per image, which softmax drops.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), TINY)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    normed: Floats = shares / shares.sum(axis=1, keepdims=True)
    return normed


def fit_temperature(probabilities: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """The temperature with the lowest likelihood loss on these images, which must not be those it is judged on.

    Between 1 / HIGHEST_TEMPERATURE and HIGHEST_TEMPERATURE; near an end where no temperature is best, as for
    a net that makes no mistake.
    """
    most = math.log(HIGHEST_TEMPERATURE)
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(scaled(probabilities, math.exp(log_t)), label),
        bounds=(-most, most), method="bounded",
    )  # fmt: skip
    return math.exp(float(found.x))
