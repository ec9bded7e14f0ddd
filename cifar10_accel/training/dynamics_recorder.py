"""Recorder of the training dynamics: loss and prediction of each training image in each epoch.

Both are by-products of the training steps. They stay on the device until the epoch ends. Finished epochs are kept on
the main process and written to the run folder with each checkpoint; the checkpoint itself has the unfinished epoch. So
a run that was killed and resumed has the same record as an uninterrupted one.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.runs.dynamics import UNSEEN, Dynamics
from cifar10_accel.training.async_reader import AsyncReader

logger = logging.getLogger(__name__)

LARGEST_LOSS = float(np.finfo(np.float16).max)


class DynamicsRecorder:
    """Training dynamics of one run. In each epoch every image is on one rank, so the sum over ranks is the record.

    Args:
        accelerator: Of this process.
        labels: (N,) of the training split.
        num_classes: Decides the integer type of the predictions.
    """

    def __init__(self, accelerator: Accelerator, labels: npt.NDArray[np.int64], *, num_classes: int) -> None:
        self._accelerator = accelerator
        self._dtype = np.min_scalar_type(-num_classes)  # the smallest integers that also hold UNSEEN
        self._label = labels.astype(self._dtype)
        # This rank's part of the epoch: loss and prediction + 1 by index in the training split; 0: unseen.
        self._epoch = torch.zeros(2, len(labels), device=accelerator.device)
        self._losses: list[npt.NDArray[np.float16]] = []  # (N,) of each finished epoch; main process only
        self._predictions: list[npt.NDArray[Any]] = []
        self._num_written = 0
        self._reader = AsyncReader()

    @torch.no_grad()
    def record(self, indices: Tensor, labels: Tensor, logits: Tensor, predictions: Tensor) -> None:
        """Record a batch, without a synchronisation: (B,) training indices, labels and predictions; (B, K) logits."""
        loss = F.cross_entropy(logits, labels, reduction="none")
        self._epoch.index_copy_(1, indices, torch.stack([loss, predictions + 1.0]))

    def end_epoch(self) -> None:
        """Append the epoch to the record and start the next one. All ranks must call this."""
        self._reader.read(self._accelerator.reduce(self._epoch), self._append_epoch)
        self._epoch.zero_()

    def _append_epoch(self, epoch: Tensor) -> None:
        if self._accelerator.is_main_process:
            loss, prediction = epoch.numpy()
            loss = np.where(prediction > 0, loss.clip(None, LARGEST_LOSS), np.nan).astype(np.float16)
            self._append(loss, (prediction - 1).astype(self._dtype))

    def capture(self) -> Tensor:
        """Return the unfinished epoch of all ranks, (2, N), for a checkpoint (rank 0's). All ranks must call this."""
        self._epoch.copy_(self._accelerator.reduce(self._epoch))
        captured = self._epoch.cpu().clone()
        if not self._accelerator.is_main_process:
            self._epoch.zero_()
        return captured

    def restore(self, captured: Tensor | None, path: Path, *, num_epochs: int) -> None:
        """Continue from a checkpoint and the file of the finished epochs. All ranks must call this.

        Args:
            captured: Result of `capture`; None if the checkpoint has none.
            path: File that `write` wrote. If it is missing or damaged, its epochs count as unseen.
            num_epochs: Finished epochs at the checkpoint.
        """
        if not self._accelerator.is_main_process:
            return
        if captured is not None and captured.shape == self._epoch.shape:
            self._epoch.copy_(captured)
        if num_epochs:
            self._read(path, num_epochs)

    def write(self, path: Path) -> None:
        """Write the finished epochs, if there are new ones. Only the main process may call this.

        Raises:
            OutOfResourcesError: The file cannot be written.
        """
        self._reader.finish()
        if len(self._losses) == self._num_written:
            return
        try:
            Dynamics(np.stack(self._losses), np.stack(self._predictions), self._label).save(path)
        except OSError as error:
            raise OutOfResourcesError(f"{path}: cannot be saved ({error}); free some disk space") from error
        self._num_written = len(self._losses)

    def _read(self, path: Path, num_epochs: int) -> None:
        try:
            saved = Dynamics.load(path)
            if not np.array_equal(saved.label, self._label):
                raise InputError(f"{path}: recorded for other images")
            for loss, prediction in zip(saved.loss[:num_epochs], saved.prediction[:num_epochs], strict=True):
                self._append(loss, prediction)
        except InputError as error:
            logger.warning("the training dynamics start with epoch %d (%s)", num_epochs + 1, error)
        self._num_written = len(self._losses)
        for _ in range(num_epochs - len(self._losses)):
            no_loss = np.full(len(self._label), np.nan, dtype=np.float16)
            self._append(no_loss, np.full(len(self._label), UNSEEN, dtype=self._dtype))

    def _append(self, loss: npt.NDArray[np.float16], prediction: npt.NDArray[Any]) -> None:
        self._losses.append(loss)
        self._predictions.append(prediction)
