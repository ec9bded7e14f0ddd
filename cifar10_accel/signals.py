"""Stop signals: a flag that SIGTERM and SIGINT set, and SIGTERM when the launcher dies."""

import os
import select
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

import psutil

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Context in which SIGTERM and SIGINT only set `signal_number`; a second signal raises SystemExit.

    In another thread it does nothing: Python handles signals in the main thread, and they are its caller's.
    """

    def __init__(self) -> None:
        self.signal_number = 0  # of the signal received; 0: none
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            raise SystemExit(128 + number)
        self.signal_number = number


def is_launched() -> bool:
    """Return whether `accelerate launch` or torchrun started this process."""
    return not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ)


def exit_when_parent_dies() -> None:
    """Send SIGTERM to this process when its launcher dies, or the agent of a W&B sweep that started the launcher.

    `accelerate launch` passes no signal on, torchrun cannot pass on a SIGKILL, and `wandb agent` without
    --forward-signals does not signal what it runs: the training would continue without an owner. Processes
    without a launcher are left to `nohup` and the shell. No effect on systems other than Linux, or if the launcher
    died before this call.
    """
    is_in_sweep = "WANDB_SWEEP_ID" in os.environ
    owners = [os.getppid()] if is_launched() or is_in_sweep else []
    if is_launched() and is_in_sweep:
        agent = psutil.Process(owners[0]).ppid()
        owners += [agent] if agent > 1 else []  # 1 is init: the agent has already exited
    if owners and hasattr(os, "pidfd_open"):
        with suppress(OSError):  # a kernel without pidfd, or an owner that has just died
            descriptors = [os.pidfd_open(owner) for owner in owners]
            threading.Thread(target=_terminate_after_the_first, args=(descriptors,), daemon=True).start()


def _terminate_after_the_first(descriptors: list[int]) -> None:
    select.select(descriptors, [], [])
    os.kill(os.getpid(), signal.SIGTERM)
