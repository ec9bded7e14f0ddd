"""Stop signals in one process; tests/test_distributed.py has the ones that need several."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifar10_accel import interrupt
from cifar10_accel.interrupt import StopSignal

ALONE: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_arrives_twice_at_once_is_one_wish(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Slurm and from the launcher, say. Later it is another one: somebody wants an end now."""
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    before = signal.getsignal(number)
    with StopSignal(ALONE) as stop:
        assert stop.agreed(1) == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert (stop.agreed(2), ends) == (number, [])
        monkeypatch.setattr(interrupt, "SAME_SIGNAL_SECONDS", -1.0)
        os.kill(os.getpid(), number)
        assert ends == [128 + number]
    assert signal.getsignal(number) is before
