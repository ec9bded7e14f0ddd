"""Stop signals: noticed at once, obeyed by all ranks together between two updates."""

import ctypes
import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Self

import torch
from accelerate import Accelerator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1
# Slurm signals every process, and launchers pass on what they get: one wish can arrive twice.
SAME_SIGNAL_SECONDS = 1.0
GPU_AGREEMENT_INTERVAL = 16  # updates between agreements where each one would stall the device


class StopSignal:
    """Context in which SIGTERM and SIGINT only raise a flag; the same one again, later, ends the process at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._received = 0
        self._received_at = 0.0
        self._interval = 1 if accelerator.device.type == "cpu" else GPU_AGREEMENT_INTERVAL

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._notice) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, step: int) -> int:
        """The signal number that any rank received (0: none). All ranks must call this, with the same step."""
        if self._accelerator.num_processes == 1:
            return self._received
        if step % self._interval:
            return 0
        flag = torch.tensor([self._received], device=self._accelerator.device)
        return int(self._accelerator.gather(flag).max())

    def _notice(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received == number and now - self._received_at > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)
        if self._received != number:
            self._received, self._received_at = number, now


def die_with_launcher() -> None:
    """Asks Linux to send SIGTERM here when the parent dies: `accelerate launch` passes no signal on.

    Without it, ending the launcher leaves the training running with nobody to own it. Only a child
    of a launcher asks for it, so that `nohup` and shells keep their usual meaning.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
