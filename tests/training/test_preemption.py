"""Stop signals: repeated signals, and SIGTERM when the launcher or the sweep agent dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_commands import REPOSITORY

from cifar10_accel.training import preemption
from cifar10_accel.training.preemption import PreemptionHandler

# Three nested processes, as `wandb agent`, `accelerate launch` and a rank; the innermost waits for its SIGTERM.
NESTED = """
import os, signal, subprocess, sys, time
level = int(sys.argv[1])
open(f"pid{level}", "w").write(str(os.getpid()))
if level < 2:
    subprocess.run([sys.executable, __file__, str(level + 1)])
else:
    from cifar10_accel.signals import exit_when_parent_dies
    signal.signal(signal.SIGTERM, lambda *_: (open("stopped", "w").close(), sys.exit()))
    exit_when_parent_dies()
    open("ready", "w").close()
    time.sleep(60)
"""


def received_twice(monkeypatch: pytest.MonkeyPatch, *, seconds_between: float) -> list[int]:
    """Return the exit codes passed to os._exit when SIGTERM arrives twice."""
    exits: list[int] = []
    now = [100.0]
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(preemption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    accelerator: Any = SimpleNamespace(device=SimpleNamespace(type="cpu"), num_processes=1)
    with PreemptionHandler(accelerator) as handler:
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] += seconds_between
        os.kill(os.getpid(), signal.SIGTERM)
        assert handler.received(1) == signal.SIGTERM
    return exits


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert received_twice(monkeypatch, seconds_between=0.01) == [143]


def test_a_signal_that_the_launcher_forwards_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert received_twice(monkeypatch, seconds_between=0.2) == []
    assert received_twice(monkeypatch, seconds_between=2.0) == [143]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's pidfd")
@pytest.mark.parametrize(
    ("killed", "variables"),
    [
        ("pid1", {"ACCELERATE_MIXED_PRECISION": "no"}),
        ("pid0", {"TORCHELASTIC_RUN_ID": "x", "WANDB_SWEEP_ID": "s"}),
    ],
)
def test_a_training_stops_with_its_launcher_and_in_a_sweep_with_the_agent(
    killed: str, variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "nested.py").write_text(NESTED)
    environment = os.environ | variables | {"PYTHONPATH": str(REPOSITORY)}
    agent = subprocess.Popen([sys.executable, "nested.py", "0"], cwd=tmp_path, env=environment)
    wait_for(tmp_path / "ready", seconds=60)
    os.kill(int((tmp_path / killed).read_text()), signal.SIGKILL)
    wait_for(tmp_path / "stopped", seconds=10)
    agent.wait(10)


def wait_for(path: Path, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} after {seconds:g} s"
        time.sleep(0.05)
