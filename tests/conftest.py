"""Shared by all tests: a clean environment, small settings, the real data where it is at hand."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifar10_accel.settings import Settings
from cifar10_accel.train import train

pytest_plugins = ["fault_table"]

# Shells let what they start in the background ignore Ctrl-C, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = os.environ.get("CIFAR10_ACCEL_DATA_DIR")

# Trainings in processes of their own are compared bit for bit, which is promised on a CPU.
CHILD_ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
# The smallest training that still has several epochs, several updates in each and a hold-out.
TINY = {
    "recipe": "smoke", "synthetic_size": 400, "val_size": 40, "width": 4, "batch_size": 60,
    "eval_batch_size": 50, "num_threads": 1, "epochs": 3, "peak_epoch": 1, "log_every": 1, "tracker": "none",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting, launcher variable, account or home of the machine reaches a test; no test writes into the tree."""
    for name in list(os.environ):
        if name.startswith(("CIFAR10_ACCEL_", "WANDB_", "ACCELERATE_")) or name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "hf"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real_data_dir() -> Path:
    """The folder of the official batches; the test is skipped where there is none."""
    if REAL_DATA is None or not Path(REAL_DATA).is_dir():
        pytest.skip("CIFAR10_ACCEL_DATA_DIR names no folder")
    return Path(REAL_DATA)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smallest training."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(Settings(**TINY, run_dir=folder))
    return folder


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as command-line flags."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def run_python(*args: str, cwd: Path, num_processes: int = 1, timeout: float = 240, **environment: str) -> Any:
    """Runs `python ARGS`, under torchrun if there are several processes; the finished process, output captured."""
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(num_processes), "--standalone"]
    return subprocess.run(
        [*launcher, *args], cwd=cwd, timeout=timeout, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | CHILD_ENVIRONMENT | environment,
    )  # fmt: skip
