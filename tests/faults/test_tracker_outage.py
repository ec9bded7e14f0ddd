"""Outages of the W&B server: the training ends with the same bits, in time, and everything can be uploaded later."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fault_table import OpenFault
from training_commands import TINY, flags, run_python
from wandb_server import answering_401, answering_500, dying, hanging, hanging_up, refusing, serving

from cifar10_accel.runs.metrics_jsonl import read_metrics

pytest.importorskip("wandb")

# Shorter than the defaults of the package (20 s and 10 s), to be tested in seconds.
LIMITS = {"WANDB_INIT_TIMEOUT": "2", "WANDB_FINISH_TIMEOUT": "2"}
ONLINE = {"WANDB_API_KEY": "0123456789" * 4, "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
LAST_STEP = 18
WEIGHTS = Path("checkpoints", f"step-{LAST_STEP:06d}", "model.safetensors")


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same training without a tracker."""
    folder = tmp_path_factory.mktemp("untracked")
    done = run_python("-m", "cifar10_accel.train", *flags(TINY), "--run-dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def assert_same_weights_and_metrics(run_dir: Path, untracked: Path) -> None:
    assert (run_dir / WEIGHTS).read_bytes() == (untracked / WEIGHTS).read_bytes()
    timed = {"images_per_second"}
    ours, theirs = (
        [{name: value for name, value in line.items() if name not in timed} for line in read_metrics(path)]
        for path in (run_dir / "metrics.jsonl", untracked / "metrics.jsonl")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("outage", "is_from_the_start"),
    [
        pytest.param(refusing, True, id="refuses", marks=pytest.mark.long),
        pytest.param(answering_500, True, id="answers 500"),
        pytest.param(hanging, True, id="hangs", marks=pytest.mark.long),
        pytest.param(answering_401, True, id="bad key", marks=pytest.mark.long),
        pytest.param(lambda: dying(after=8), False, id="dies in the middle"),
        pytest.param(lambda: hanging_up(after=8), False, id="hangs up within a response", marks=pytest.mark.long),
    ],
)
def test_an_outage_costs_a_warning_and_some_seconds(
    outage: Callable[[], AbstractContextManager[str]],
    is_from_the_start: bool,
    tmp_path: Path,
    untracked: Path,
    fault: OpenFault,
    request: pytest.FixtureRequest,
) -> None:
    expected = "same weights, one warning, complete JSONL, uploaded later"
    with fault(f"W&B {request.node.callspec.id}", expected=expected, code=0):
        train_and_upload(outage, is_from_the_start, tmp_path, untracked)


def train_and_upload(
    outage: Callable[[], AbstractContextManager[str]], is_from_the_start: bool, tmp_path: Path, untracked: Path
) -> None:
    """Train during the outage, compare with an untracked run, and upload to a working server."""
    args = flags(TINY | {"tracker": "wandb", "run_dir": tmp_path / "run"})
    with outage() as url:
        started = time.monotonic()
        done = run_python("-m", "cifar10_accel.train", *args, cwd=tmp_path, WANDB_BASE_URL=url, **LIMITS, **ONLINE)
        assert time.monotonic() - started < 60
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert_same_weights_and_metrics(tmp_path / "run", untracked)

    # The logged command uploads everything.
    (command,) = (line.split("to upload it: ")[1] for line in done.stdout.splitlines() if "to upload it: " in line)
    assert ("--include-online" in command) is not is_from_the_start
    with serving() as server:
        there = os.environ | ONLINE | {"WANDB_BASE_URL": server.url}
        subprocess.run([sys.executable, "-m", *shlex.split(command)], env=there, check=True, capture_output=True)
    (run,) = server.backend.runs.values()
    assert server.backend.unknown == []
    logged = [line["train/loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert run.values("train/loss") == logged
    assert len(logged) == LAST_STEP
    for name in ("misclassified", "correct"):
        rows = server.backend.table(run.name, name)["data"]
        assert all(row[0].startswith(b"\x89PNG") for row in rows)
    assert rows


def test_a_tracker_that_is_not_installed_costs_a_warning(tmp_path: Path, untracked: Path, fault: OpenFault) -> None:
    with fault("W&B is not installed", expected="same weights, one warning, complete JSONL", code=0):
        train_without_wandb(tmp_path, untracked)


def train_without_wandb(tmp_path: Path, untracked: Path) -> None:
    """Train without the package and compare with an untracked run."""
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb here')")
    args = flags(TINY | {"tracker": "wandb", "run_dir": tmp_path / "run"})
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = run_python("-m", "cifar10_accel.train", *args, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: ") == 1
    assert "pip install wandb" in done.stderr
    assert_same_weights_and_metrics(tmp_path / "run", untracked)
