"""Preemption by SIGTERM or SIGINT: all ranks stop together between two steps."""

import os
import time
from types import FrameType

import torch
from accelerate import Accelerator

from cifar10_accel.signals import StopFlag, is_launched

ECHO_SECONDS = 1.0  # a signal to a process group arrives a second time through the launcher; both are one stop
GPU_AGREEMENT_INTERVAL = 16  # steps between agreements of the ranks, each of which waits for the GPU


class PreemptionHandler(StopFlag):
    """Context in which SIGTERM and SIGINT only set a flag; the same signal a second time ends the process at once.

    Under a launcher the second signal counts only after ECHO_SECONDS, because launchers forward signals that the
    process may already have received.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self._accelerator = accelerator
        self._received_at = 0.0
        self._echo_seconds = ECHO_SECONDS if is_launched() else 0.0
        self._interval = 1 if accelerator.device.type == "cpu" else GPU_AGREEMENT_INTERVAL

    def received(self, step: int) -> int:
        """Return the signal that any rank received (0: none). All ranks must call this with the same step."""
        if self._accelerator.num_processes == 1:
            return self.signal_number
        if step % self._interval:
            return 0
        flag = torch.tensor([self.signal_number], device=self._accelerator.device)
        return int(self._accelerator.gather(flag).max())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number == number and time.monotonic() > self._received_at + self._echo_seconds:
            os._exit(128 + number)
        if self.signal_number != number:
            self.signal_number, self._received_at = number, time.monotonic()
