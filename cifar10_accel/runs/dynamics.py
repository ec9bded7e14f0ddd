"""Training dynamics: loss and prediction of each training image in each epoch, in dynamics.npz.

They are those of the training steps: of the augmented image, in training mode, with the weights before the step. With
MixUp or CutMix they are those of the mixed image, compared with the image's own label.

Shapes: E epochs, N training images, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar10_accel.errors import InputError
from cifar10_accel.files import load_arrays, save_arrays

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNSEEN = -1  # prediction for an image that was in no batch of an epoch
ADVICE = "delete it"  # a report can be made without it


@dataclass(frozen=True)
class Dynamics:
    """One row per finished epoch; images are numbered by their position in the training split, without the hold-out."""

    loss: npt.NDArray[np.float16]  # (E, N) cross-entropy of the own label in nats, without smoothing; NaN: unseen
    prediction: npt.NDArray[Any]  # (E, N) most probable class, in the smallest signed integer type; or UNSEEN
    label: npt.NDArray[Any]  # (N,) as in the data set

    @property
    def num_classes(self) -> int:
        """Smallest number of classes that includes all labels and predictions."""
        return 1 + max(int(self.label.max(initial=0)), int(self.prediction.max(initial=0)))

    @property
    def seen(self) -> Bools:
        """Mask of the images that were in a batch of an epoch: (E, N); incomplete batches are not trained on."""
        return np.asarray(self.prediction != UNSEEN)

    @property
    def correct(self) -> Bools:
        """Mask of the correct predictions of each epoch: (E, N); False where an image was unseen."""
        return np.asarray(self.prediction == self.label)

    def forgetting_events(self) -> Ints:
        """Return the number of changes from a correct to an incorrect prediction of each image: (N,).

        Epochs in which an image was unseen are skipped (Toneva et al. 2018, https://arxiv.org/abs/1812.05159).
        """
        events = np.zeros(len(self.label), dtype=np.int64)
        was_correct = np.zeros(len(self.label), dtype=bool)
        for correct, seen in zip(self.correct, self.seen, strict=True):
            events += was_correct & seen & ~correct
            was_correct = np.where(seen, correct, was_correct)
        return events

    def never_learned(self) -> Bools:
        """Return the mask of images that were seen and never classified correctly: (N,)."""
        return np.asarray(self.seen.any(axis=0) & ~self.correct.any(axis=0))

    def probability(self) -> tuple[Floats, Floats]:
        """Return mean and standard deviation over epochs of the label's probability: (N,) each, NaN if never seen.

        The axes of a data map (Swayamdipta et al. 2020, https://arxiv.org/abs/2009.10795). A high mean is an easy
        image, a high standard deviation an ambiguous one, a low mean a hard or mislabelled one.
        """
        return self._over_epochs(np.exp(-self.loss.astype(np.float32)))

    def margin(self) -> Floats:
        """Return the mean over epochs of the label's log odds, log(p / (1 - p)): (N,), NaN if never seen.

        This is the area under the margin (Pleiss et al. 2020, https://arxiv.org/abs/2001.10528) against all other
        classes together instead of the most probable of them, since only the loss is recorded.
        """
        loss = self.loss.astype(np.float32).clip(1e-7, None)  # float16 has no value between 0 and 6e-8
        return self._over_epochs(-loss - np.log(-np.expm1(-loss)))[0]

    def most_frequent_mistake(self) -> tuple[Ints, Ints]:
        """Return the most frequent incorrect prediction of each image, and the number of such epochs: (N,) each."""
        counts = np.zeros((len(self.label), self.num_classes), dtype=np.int64)
        rows = np.arange(len(self.label))
        for prediction, incorrect in zip(self.prediction, self.seen & ~self.correct, strict=True):
            counts[rows, prediction] += incorrect  # 0 where unseen
        mistake = counts.argmax(axis=1)
        return mistake, counts[rows, mistake]

    def likely_mislabelled(self) -> Ints:
        """Return the images whose mean probability of the label is below chance, 1 / K; lowest margin first."""
        suspects = np.flatnonzero(self.probability()[0] < 1 / self.num_classes)
        return suspects[np.argsort(self.margin()[suspects], kind="stable")]

    def most_forgotten(self) -> Ints:
        """Return the images with forgetting events: most events first, then lowest mean probability of the label."""
        events = self.forgetting_events()
        order = np.lexsort((self.probability()[0], -events))
        return order[events[order] > 0]

    def save(self, path: Path) -> None:
        """Write an npz of the arrays atomically; equal arrays give equal files."""
        save_arrays(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> "Dynamics":
        """Read a file that `save` wrote.

        Raises:
            InputError: The file is missing, damaged or something else.
        """
        loaded = cls(**load_arrays(path, cls.__dataclass_fields__, what="training dynamics", advice=ADVICE))
        shapes = {loaded.loss.shape, loaded.prediction.shape}
        if len(shapes) > 1 or loaded.loss.ndim != 2 or loaded.loss.shape[1:] != loaded.label.shape:
            raise InputError(f"{path}: its arrays do not belong together; {ADVICE}")
        return loaded

    def _over_epochs(self, values: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of (E, N) values over the epochs that saw the image; NaN if none did."""
        seen = self.seen
        counts = np.where(seen.any(axis=0), seen.sum(axis=0), np.nan)
        mean = np.where(seen, values, 0).sum(axis=0) / counts
        variance = np.where(seen, (values - mean) ** 2, 0).sum(axis=0) / counts
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
