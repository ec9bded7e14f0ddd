"""What a net said of each training image, epoch by epoch, and what that tells of the image: dynamics.npz.

Each image counts as it was trained on: augmented, in training mode, with the weights of that moment. With
MixUp or CutMix it is the mixed image, and still its own label that counts.

Legend: E epochs, N training images, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar10_accel.array_file import load_arrays, save_arrays
from cifar10_accel.errors import InputError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNSEEN = -1  # the prediction where an image was not in any batch of an epoch
ADVICE = "delete it"  # a report does without


@dataclass(frozen=True)
class Dynamics:
    """One row per finished epoch; images are numbered by their places in the training split, without the hold-out."""

    loss: npt.NDArray[np.float16]  # (E, N) cross-entropy of the own label in nats, without smoothing; nan: unseen
    prediction: npt.NDArray[Any]  # (E, N) most probable class, in the smallest signed integers; UNSEEN
    label: npt.NDArray[Any]  # (N,) the labels as they were given

    @property
    def num_classes(self) -> int:
        """The least number of classes that explains the labels and predictions."""
        return 1 + max(int(self.label.max(initial=0)), int(self.prediction.max(initial=0)))

    @property
    def seen(self) -> Bools:
        """Whether each image was in a batch of each epoch: (E, N); incomplete batches are left out."""
        return np.asarray(self.prediction != UNSEEN)

    @property
    def right(self) -> Bools:
        """Whether each image was classified rightly in each epoch: (E, N); False where it was unseen."""
        return np.asarray(self.prediction == self.label)

    def forgetting_events(self) -> Ints:
        """How often each image was right when it was seen and wrong the next time: (N,).

        (Toneva et al. 2018, https://arxiv.org/abs/1812.05159)
        """
        events = np.zeros(len(self.label), dtype=np.int64)
        was_right = np.zeros(len(self.label), dtype=bool)
        for right, seen in zip(self.right, self.seen, strict=True):
            events += was_right & seen & ~right
            was_right = np.where(seen, right, was_right)
        return events

    def never_learned(self) -> Bools:
        """Whether an image was seen, and never classified rightly: (N,)."""
        return np.asarray(self.seen.any(axis=0) & ~self.right.any(axis=0))

    def probability(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation over the epochs of the label's probability: (N,) each, nan if never seen.

        High and steady: easy; varying: ambiguous; low: hard or mislabelled.
        (data maps: Swayamdipta et al. 2020, https://arxiv.org/abs/2009.10795)
        """
        return self._over_epochs(np.exp(-self.loss.astype(np.float32)))

    def margin(self) -> Floats:
        """Mean over the epochs of the label's log odds, log(p / (1 - p)): (N,), nan if never seen.

        The area under the margin (Pleiss et al. 2020, https://arxiv.org/abs/2001.10528), with all other classes
        together in place of the strongest of them, which is what the loss by itself can tell.
        """
        loss = self.loss.astype(np.float32).clip(1e-7, None)  # float16 knows nothing between 0 and 6e-8
        return self._over_epochs(-loss - np.log(-np.expm1(-loss)))[0]

    def usual_answer(self) -> tuple[Ints, Ints]:
        """The class other than its label that each image was taken for most often, and in how many epochs: (N,)."""
        counts = np.zeros((len(self.label), self.num_classes), dtype=np.int64)
        rows = np.arange(len(self.label))
        for prediction, wrong in zip(self.prediction, self.seen & ~self.right, strict=True):
            counts[rows, prediction] += wrong  # where unseen nothing is added
        answer = counts.argmax(axis=1)
        return answer, counts[rows, answer]

    def likely_mislabelled(self) -> Ints:
        """Images whose label had less than chance, 1 / K, on average over the epochs; lowest margin first."""
        suspects = np.flatnonzero(self.probability()[0] < 1 / self.num_classes)
        return suspects[np.argsort(self.margin()[suspects], kind="stable")]

    def most_forgotten(self) -> Ints:
        """Images that were forgotten at least once; most often first, then the less probable."""
        events = self.forgetting_events()
        order = np.lexsort((self.probability()[0], -events))
        return order[events[order] > 0]

    def save(self, path: Path) -> None:
        """Writes an npz of the arrays, whole or not at all; equal records give equal files."""
        save_arrays(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> "Dynamics":
        """What `save` wrote; `InputError` if the file is missing, damaged or something else."""
        loaded = cls(**load_arrays(path, cls.__dataclass_fields__, what="training dynamics", advice=ADVICE))
        shapes = {loaded.loss.shape, loaded.prediction.shape}
        if len(shapes) > 1 or loaded.loss.ndim != 2 or loaded.loss.shape[1:] != loaded.label.shape:
            raise InputError(f"{path}: its arrays do not belong together; {ADVICE}")
        return loaded

    def _over_epochs(self, values: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of (E, N) values where they were seen; nan for an image without any."""
        seen = self.seen
        counts = np.where(seen.any(axis=0), seen.sum(axis=0), np.nan)
        mean = np.where(seen, values, 0).sum(axis=0) / counts
        variance = np.where(seen, (values - mean) ** 2, 0).sum(axis=0) / counts
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
