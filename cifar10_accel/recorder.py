"""Records, while a net is trained, what it says of each image: the loss and the answer that an update has anyway.

They stay on the device until the epoch ends. Finished epochs are on the main process and, as of each checkpoint,
in the run folder; of the epoch that goes on each checkpoint has what there is. So a run that was killed records
the same as one that was not.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from cifar10_accel.dynamics import UNSEEN, Dynamics
from cifar10_accel.errors import InputError, OutOfResourcesError

LARGEST = float(np.finfo(np.float16).max)


class Recorder:
    """The record of one run. Every image is on one rank in an epoch, so the ranks' records add up."""

    def __init__(self, accelerator: Accelerator, labels: npt.NDArray[np.int64], *, num_classes: int) -> None:
        self._accelerator = accelerator
        self._dtype = np.min_scalar_type(-num_classes)  # the smallest integers that also hold UNSEEN
        self._label = labels.astype(self._dtype)
        # This rank's part of the epoch: loss, and answer + 1, by place in the training split; 0: unseen.
        self._epoch = torch.zeros(2, len(labels), device=accelerator.device)
        self._losses: list[npt.NDArray[np.float16]] = []  # (N,) of each finished epoch; main process only
        self._predictions: list[npt.NDArray[Any]] = []
        self._num_written = 0

    @torch.no_grad()
    def note(self, indices: Tensor, labels: Tensor, logits: Tensor, answers: Tensor) -> None:
        """Notes a batch: (B,) places in the training split, labels and answers, (B, K) logits. Nothing waits for it."""
        loss = F.cross_entropy(logits, labels, reduction="none")
        self._epoch.index_copy_(1, indices, torch.stack([loss, answers + 1.0]))

    def end_epoch(self) -> None:
        """Takes the epoch into the record and starts the next one. All ranks must call this."""
        loss, answer = self._accelerator.reduce(self._epoch).cpu().numpy()
        if self._accelerator.is_main_process:
            loss = np.where(answer > 0, loss.clip(None, LARGEST), np.nan).astype(np.float16)
            self._append(loss, (answer - 1).astype(self._dtype))
        self._epoch.zero_()

    def capture(self) -> Tensor:
        """The epoch so far, of all ranks, for a checkpoint: (2, N). All ranks must call this; rank 0's counts."""
        self._epoch = self._accelerator.reduce(self._epoch)
        captured = self._epoch.cpu().clone()
        if not self._accelerator.is_main_process:
            self._epoch.zero_()
        return captured

    def restore(self, captured: Tensor | None, path: Path, *, num_epochs: int) -> None:
        """Continues from a checkpoint and what was written of the finished epochs; every rank calls this.

        captured: None if the checkpoint has none. Epochs of which nothing is left count as unseen.
        """
        if not self._accelerator.is_main_process:
            return
        if captured is not None and captured.shape == self._epoch.shape:
            self._epoch.copy_(captured)
        if num_epochs:
            self._read(path, num_epochs)

    def write(self, path: Path) -> None:
        """Writes the finished epochs, if there are new ones. Only the main process may call this.

        Raises `OutOfResourcesError` if the file cannot be written.
        """
        if len(self._losses) == self._num_written:
            return
        try:
            Dynamics(np.stack(self._losses), np.stack(self._predictions), self._label).save(path)
        except OSError as error:
            raise OutOfResourcesError(f"{path}: cannot be saved ({error}); free some disk space") from error
        self._num_written = len(self._losses)

    def _read(self, path: Path, num_epochs: int) -> None:
        try:
            before = Dynamics.load(path)
            if not np.array_equal(before.label, self._label):
                raise InputError(f"{path}: recorded of other images")
            for loss, prediction in zip(before.loss[:num_epochs], before.prediction[:num_epochs], strict=True):
                self._append(loss, prediction)
        except InputError as error:
            print(f"warning: the training dynamics start with epoch {num_epochs + 1} ({error})", file=sys.stderr)
        self._num_written = len(self._losses)
        for _ in range(num_epochs - len(self._losses)):
            nothing = np.full(len(self._label), np.nan, dtype=np.float16)
            self._append(nothing, np.full(len(self._label), UNSEEN, dtype=self._dtype))

    def _append(self, loss: npt.NDArray[np.float16], prediction: npt.NDArray[Any]) -> None:
        self._losses.append(loss)
        self._predictions.append(prediction)
