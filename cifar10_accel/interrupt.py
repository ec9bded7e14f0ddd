"""Stop signals: noticed at once, obeyed by all ranks together between two updates."""

import os
import select
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import torch
from accelerate import Accelerator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 1.0  # a process group is told to stop, and its launcher passes it on: that is one stop
GPU_AGREEMENT_INTERVAL = 16  # updates between agreements where each one would stall the device


class StopSignal:
    """Context in which SIGTERM and SIGINT only raise a flag; the same signal again ends the process at once.

    Where a launcher may pass the signal on to a process that already has it, again means a second later.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._received = 0
        self._received_at = 0.0
        self._echo_seconds = ECHO_SECONDS if _is_launched() else 0.0
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
        if self._received == number and time.monotonic() > self._received_at + self._echo_seconds:
            os._exit(128 + number)
        if self._received != number:
            self._received, self._received_at = number, time.monotonic()


def die_with_launcher() -> None:
    """Makes Linux send SIGTERM here when the launcher dies, or the agent of a W&B sweep that started the launcher.

    `accelerate launch` passes no signal on, torchrun cannot pass on a SIGKILL, and `wandb agent` dies of a
    signal without a word to what it runs (unless it has --forward-signals): the training would go on with
    nobody to own it. One that nobody launched keeps what `nohup` and shells mean. Without effect on other
    systems, and for a death before this call.
    """
    is_in_sweep = "WANDB_SWEEP_ID" in os.environ
    owners = [os.getppid()] if _is_launched() or is_in_sweep else []
    if _is_launched() and is_in_sweep:
        owners += _parents_of(owners[0])
    if owners and hasattr(os, "pidfd_open"):
        with suppress(OSError):  # a kernel without them, or an owner that has just died
            descriptors = [os.pidfd_open(owner) for owner in owners]
            threading.Thread(target=_stop_with_the_first, args=(descriptors,), daemon=True).start()


def _is_launched() -> bool:
    return not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ)


def _parents_of(process: int) -> list[int]:
    """The parent of a process, unless that is the init of the machine."""
    stat = Path(f"/proc/{process}/stat").read_text()
    parent = int(stat.rpartition(")")[2].split()[1])
    return [parent] if parent > 1 else []


def _stop_with_the_first(descriptors: list[int]) -> None:
    select.select(descriptors, [], [])
    os.kill(os.getpid(), signal.SIGTERM)
