"""Shared by all tests: a clean environment, small settings, the real data where it is at hand."""

import os
import signal
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from training_commands import TINY

from cifar10_accel.cli.logging import show_log_messages
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

pytest_plugins = ["fault_table"]

# Shells let what they start in the background ignore Ctrl-C, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Losses, bits and tolerances in the tests are those of float32, on every machine; tests of `auto` take this away.
PINNED = {"CIFAR10_ACCEL_PRECISION": "no"}
os.environ.update(PINNED)  # also for fixtures of a module or session

REAL_DATA = os.environ.get("CIFAR10_ACCEL_DATA_DIR")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting, launcher variable, account or home of the machine reaches a test; no test writes into the tree."""
    for name in list(os.environ):
        launch = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OPTUNA_STORAGE")
        if name.startswith(("CIFAR10_ACCEL_", "WANDB_", "ACCELERATE_")) or name in launch:
            monkeypatch.delenv(name)
    for name, value in PINNED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "hf"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_accelerator_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's Accelerator does not have the precision of an earlier test's."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", type(AcceleratorState._shared_state)())


@pytest.fixture(autouse=True)
def _shown_log_messages(_clean_environment: None) -> None:
    """Log messages are printed as by the command line, so that tests find them in stdout and stderr."""
    show_log_messages()


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
    fit(Settings(**TINY, run_dir=folder))
    return folder
