"""Trainings on two hosts: the launchers' commands, and how each host's process ends."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from cluster_hosts import Command, Host, Hosts
from training_commands import TINY, flags

MACHINES = ("nodea", "nodeb")
PORT = "29500"
# `accelerate launch` for GPUs is the command for CPUs, too: without GPUs the processes compute on the CPU.
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no")
SMALL = TINY | {"epochs": 2, "batch_size": 52, "val_size": 0}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}


def start_accelerate(
    host: Host,
    settings: Mapping[str, Any],
    *,
    options: tuple[str, ...] = (),
    module: str = "cifar10_accel.train",
    per_machine: int = 1,
    **environment: str,
) -> Command:
    """Start `accelerate launch` on one of two machines."""
    words = [
        *ACCELERATE,
        *("--num_machines", "2", "--num_processes", str(2 * per_machine)),
        *("--machine_rank", str(MACHINES.index(host.name))),
        *("--main_process_ip", "10.77.0.1", "--main_process_port", PORT, "--dynamo_backend", "no"),
        *options,
        *("-m", module, *flags(SMALL | dict(settings))),
    ]
    return host.start(*words, **ENVIRONMENT | environment)


def start_torchrun(host: Host, settings: Mapping[str, Any], *options: str, **environment: str) -> Command:
    """Start torchrun with its c10d rendezvous on one of two machines."""
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"10.77.0.1:{PORT}", "--rdzv-id", "test", *options),
        *("-m", "cifar10_accel.train", *flags(SMALL | dict(settings))),
    ]
    return host.start(*words, **ENVIRONMENT | environment)


def run_on_both(hosts: Hosts, *settings: Mapping[str, Any], timeout: float = 120, **environment: str) -> list[Command]:
    """Train on both machines, each with its settings, and return the ended commands."""
    started = [
        start_accelerate(hosts[name], values, **environment) for name, values in zip(MACHINES, settings, strict=True)
    ]
    for command in started:
        command.wait(timeout)
    return started


def errors(command: Command) -> list[str]:
    """Return the lines with which this project ended, without the launcher's own report."""
    return [line for line in command.output().splitlines() if line.startswith("error: ")]


def exit_codes(command: Command) -> set[int]:
    """Return the exit codes of the processes that the launcher, which itself ends with 1, reports."""
    found = [line.split(":", 1)[1].split("(")[0] for line in command.output().splitlines() if "  exitcode  : " in line]
    return {int(text) for text in found}


def worker_processes(host: Host) -> list[psutil.Process]:
    """Return the training processes on a host, without launchers and other helpers."""
    found = [process for process in host.processes("-m cifar10_accel.train") if process.name().startswith("python")]
    return [process for process in found if process.cmdline()[1:4] == ["-u", "-m", "cifar10_accel.train"]]


def wait_for_checkpoint(run: Path, commands: list[Command], timeout: float = 120) -> None:
    """Return as soon as the run has a checkpoint; the test fails if a command ends before."""
    until = time.monotonic() + timeout
    while not list(run.glob("checkpoints/step-*[0-9]")):
        for command in commands:
            assert command.poll() is None, command.output()
        assert time.monotonic() < until, [command.output() for command in commands]
        time.sleep(0.05)


def weights(run: Path) -> str:
    """Return the digest of the weights in the newest checkpoint."""
    newest = max(run.glob("checkpoints/step-*[0-9]"))
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def status(run: Path) -> dict[str, Any]:
    """Return the content of status.json."""
    return dict(json.loads((run / "status.json").read_text()))
