"""Trainings in subprocesses: start, watch and kill them, and compare the bits of finished runs."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_commands import CHILD_ENVIRONMENT, TINY

from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.subprocesses import python_command

SLOWER = TINY | {"synthetic_size": 1600, "width": 8, "epochs": 3}  # 78 steps of about 20 ms
LAST_STEP = 78
TRAIN = ("-m", "cifar10_accel.train")
Process = "subprocess.Popen[str]"


@contextmanager
def started(
    cwd: Path, *args: str, program: Sequence[str] = TRAIN, num_processes: int = 1, **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """Context of a training in its own process group, which is killed at the end."""
    environment = os.environ | CHILD_ENVIRONMENT | options.pop("environment", {})
    process = subprocess.Popen(
        python_command([*program, *args], num_processes=num_processes),
        cwd=cwd,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **options,
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[str]") -> None:
    """Send SIGKILL to every process of the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None and not process.stdout.closed:
        process.communicate()


def finished(process: "subprocess.Popen[str]", *, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Wait for the end of a started process and return it with its output; fail after `timeout` seconds."""
    stdout, stderr = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_until(process: "subprocess.Popen[str]", condition: Any, *, timeout: float = 120) -> None:
    """Return as soon as the condition holds; fail with the training's output if it ends before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"the condition did not hold within {timeout:g} s")


def wait_for_step(process: "subprocess.Popen[str]", run_dir: Path, step: int) -> None:
    """Return as soon as this step is logged."""
    metrics = run_dir / "metrics.jsonl"
    wait_until(process, lambda: metrics.exists() and any(line["step"] >= step for line in read_metrics(metrics)))


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process, oldest first."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return sorted(int(word) for word in listed.split())


def status_of(run_dir: Path) -> dict[str, Any]:
    """Return the content of status.json."""
    return dict(json.loads((run_dir / "status.json").read_text()))


def bits_of(run_dir: Path) -> dict[str, bytes]:
    """Return the bytes of weights, average, optimizer state, predictions, dynamics and metrics (but speed) by name."""
    newest = checkpoint.newest(run_dir / "checkpoints")
    assert newest is not None
    state = checkpoint.load(newest)
    training = {name: value for name, value in state.training.items() if not name.startswith("seconds")}
    bits = dict(_leaves(newest.name, {"model": state.model, "average": state.average, "training": training}))
    for file in ("predictions", "dynamics"):
        with np.load(run_dir / f"{file}.npz", allow_pickle=False) as arrays:
            bits |= {f"{file}/{name}": arrays[name].tobytes() for name in arrays}
    for number, line in enumerate(read_metrics(run_dir / "metrics.jsonl")):
        bits[f"metrics.jsonl line {number}"] = json.dumps(line | {"images_per_second": None}).encode()
    return bits


def assert_same_bits(one: Path, other: Path) -> int:
    """Fail with the names of all values that differ between two runs; return the number of compared bits."""
    first, second = bits_of(one), bits_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    return 8 * sum(map(len, first.values()))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, bytes]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(f"{name}/{key}", inner)
    elif isinstance(value, torch.Tensor):
        yield name, value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        yield name, repr(value).encode()
