"""The real `wandb sweep` and `wandb agent` with the real training command and a local fake of W&B's server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_commands import REPOSITORY, TINY, flags
from wandb_backend import Backend
from wandb_records import Run
from wandb_server import WandbServer, serving

from cifar10_accel.runs.metrics_jsonl import read_metrics

pytest.importorskip("wandb")

# The training command; each rank writes its settings to a file, and steps are slow while a file `slow` exists.
PROBE = """
import os, sys, time
from pathlib import Path
from cifar10_accel import train
from cifar10_accel.cli import main
fit, train_step = train.fit, train.train_step
def recorded_fit(settings):
    Path(f"rank{os.environ.get('RANK', '0')}-{os.environ['WANDB_RUN_ID']}.json").write_text(settings.model_dump_json())
    return fit(settings).summary
def slow_train_step(*args, **keyoutput):
    time.sleep(0.5 if Path("slow").exists() else 0)
    return train_step(*args, **keyoutput)
train.fit, train.train_step = recorded_fit, slow_train_step
main(["train", *sys.argv[1:]])
"""
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(REPOSITORY / "accelerate_config.yaml")]
LAST_STEP = 18  # of the small settings


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """Fake server; fails a test in which the client sent a request that the fake does not know."""
    with serving() as server:
        yield server
        assert server.backend.unknown == []


@pytest.fixture
def wandb_command(server: WandbServer, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Function that starts `wandb ARGS` in the test's folder, logged in; all processes are killed after the test."""
    own = {
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        "PYTHONPATH": str(REPOSITORY),
        "STARTED_BY": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def start(*args: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "wandb", *args],
            cwd=tmp_path,
            env=os.environ | own,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    yield start
    for process in started_by(tmp_path):
        os.kill(process, signal.SIGKILL)


def started_by(folder: Path) -> list[int]:
    """Return the pids of running processes that a test in this folder started, with all descendants."""
    mark = f"STARTED_BY={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has just ended, or is a zombie
            continue
    return found


def wait_until(condition: Callable[[], Any], what: str, *, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.1)


def sweep_of(
    wandb_command: Callable[..., "subprocess.Popen[str]"], folder: Path, config: dict[str, Any], *, num_processes: int
) -> str:
    """Create a sweep with the real client and return its path. Its trials run the probe on so many processes."""
    (folder / "probe.py").write_text(PROBE)
    ranks = ["--multi_gpu", "--num_processes=2"] if num_processes == 2 else ["--num_processes=1"]
    settings = flags(TINY | {"tracker": "wandb", "wandb_project": "p"})
    command = ["${env}", "${interpreter}", *LAUNCH, *ranks, "${program}", *settings, "${args}"]
    metric = {"name": "val/accuracy", "goal": "maximize"}
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump(config | {"program": "probe.py", "metric": metric, "command": command})
    )
    done = wandb_command("sweep", "--project", "p", "sweep.yaml")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 0, output
    return output.rsplit("wandb agent ", 1)[1].split()[0]


def run_dir_of(run: Run, folder: Path) -> Path:
    """Return the run folder of a trial, by the settings that the server chose."""
    for path in (folder / "runs").iterdir():
        settings = yaml.safe_load((path / "settings.yaml").read_text())
        if all(settings[name] == value for name, value in run.settings().items() if name in ("max_lr", "weight_decay")):
            return path
    raise AssertionError(f"no folder of {run.name}")


def is_under_way(backend: Backend, name: str, *, steps: int = 2) -> bool:
    return name in backend.runs and len(backend.runs[name].values("lr")) >= steps


def assert_stopped_with_a_checkpoint(run: Run, folder: Path) -> None:
    """Check that the state on disk is preempted, and that W&B has the exit code and all logged lines."""
    run_dir = run_dir_of(run, folder)
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("preempted", 143)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert lines[-1]["step"] < LAST_STEP
    assert (run_dir / "checkpoints" / f"step-{lines[-1]['step']:06.0f}").is_dir()
    assert run.exit_code == 143
    assert run.values("train/loss") == [line["train/loss"] for line in lines if "train/loss" in line]


def test_a_sweep_of_two_trials_on_two_processes(
    server: WandbServer, wandb_command: Callable[..., Any], tmp_path: Path
) -> None:
    """All ranks get the values that the server chose; all metrics arrive once, from one rank."""
    config = {
        "method": "random",
        "run_cap": 2,
        "parameters": {
            "max_lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 0.5},
            "weight_decay": {"values": [1.0e-4, 5.0e-4]},
        },
    }
    agent = wandb_command("agent", "--count", "2", sweep_of(wandb_command, tmp_path, config, num_processes=2))
    output, _ = agent.communicate(timeout=240)
    assert agent.returncode == 0, output
    (sweep,) = server.backend.sweeps.values()
    assert len(sweep.suggested) == len(server.backend.runs) == 2
    for number, chosen in enumerate(sweep.suggested):
        run = server.backend.runs[f"{sweep.name}-{number}"]
        assert (run.state, run.num_starts, run.sweep) == ("finished", 1, sweep.name)
        assert run.settings().items() >= chosen.items()
        for rank in (0, 1):
            settings = json.loads((tmp_path / f"rank{rank}-{run.name}.json").read_text())
            assert settings.items() >= chosen.items()
        run_dir = run_dir_of(run, tmp_path)
        assert json.loads((run_dir / "environment.json").read_text())["processes"] == 2
        summary = json.loads((run_dir / "summary.json").read_text())
        assert run.summary["test/accuracy"] == pytest.approx(summary["test/accuracy"])
        assert len(run.values("lr")) == LAST_STEP
        assert len(run.values("val/accuracy")) == 3
        table = server.backend.table(run.name, "misclassified")
        assert table["columns"] == ["image", "index", "true", "predicted", "confidence", "loss"]
        assert table["data"]
        assert all(row[0].startswith(b"\x89PNG") for row in table["data"])
    assert started_by(tmp_path) == []


def test_a_failed_trial_a_killed_agent_and_the_next_one(
    server: WandbServer, wandb_command: Callable[..., Any], tmp_path: Path
) -> None:
    """One process per trial: the first diverges, the agent dies during the second, and another agent continues it."""
    config = {"method": "grid", "parameters": {"max_lr": {"values": [1000.0, 0.1]}, "weight_decay": {"value": 1.0}}}
    path = sweep_of(wandb_command, tmp_path, config, num_processes=1)
    (tmp_path / "slow").touch()
    agent = wandb_command("agent", path)
    wait_until(lambda: is_under_way(server.backend, "sweep0-1"), "the second trial")
    failed, stopped = server.backend.runs.values()
    assert (failed.state, failed.exit_code) == ("failed", 4)

    agent.terminate()  # dies at once, as it does without --forward-signals
    wait_until(lambda: started_by(tmp_path) == [], "the end of all processes", timeout=30)
    assert agent.wait() == -signal.SIGTERM
    assert_stopped_with_a_checkpoint(stopped, tmp_path)
    assert stopped.state == "preempted"

    (tmp_path / "slow").unlink()
    output, _ = wandb_command("agent", "--count", "1", path).communicate(timeout=120)
    assert (stopped.state, stopped.num_starts) == ("finished", 2), output
    assert [row["step"] for row in stopped.history if "lr" in row] == list(range(1, LAST_STEP + 1))
    assert len(server.backend.runs) == 2


@pytest.mark.long
def test_w_and_b_stops_a_trial_and_then_the_sweep(
    server: WandbServer, wandb_command: Callable[..., Any], tmp_path: Path
) -> None:
    """Two processes per trial. A stop reaches the launcher as SIGTERM, a cancelled sweep as SIGKILL."""
    config = {"method": "grid", "parameters": {"max_lr": {"values": [0.1, 0.2, 0.3]}}}
    path = sweep_of(wandb_command, tmp_path, config, num_processes=2)
    (tmp_path / "slow").touch()
    agent = wandb_command("agent", path)
    wait_until(lambda: is_under_way(server.backend, "sweep0-0"), "the first trial")
    server.backend.runs["sweep0-0"].is_to_stop = True
    wait_until(lambda: is_under_way(server.backend, "sweep0-1"), "the second trial")
    assert_stopped_with_a_checkpoint(server.backend.runs["sweep0-0"], tmp_path)

    cancel = wandb_command("sweep", "--cancel", path)
    assert cancel.wait(60) == 0
    wait_until(lambda: started_by(tmp_path) == [], "the end of all processes", timeout=30)
    assert agent.wait() == 0
    assert_stopped_with_a_checkpoint(server.backend.runs["sweep0-1"], tmp_path)
    assert len(server.backend.runs) == 2


@pytest.mark.long
def test_an_agent_that_forwards_signals_waits_for_the_trial(
    server: WandbServer, wandb_command: Callable[..., Any], tmp_path: Path
) -> None:
    path = sweep_of(
        wandb_command, tmp_path, {"method": "grid", "parameters": {"max_lr": {"value": 0.1}}}, num_processes=2
    )
    (tmp_path / "slow").touch()
    agent = wandb_command("agent", "--forward-signals", path)
    wait_until(lambda: is_under_way(server.backend, "sweep0-0"), "the trial")
    agent.terminate()
    output, _ = agent.communicate(timeout=60)
    assert "Waiting for runs to end" in output
    wait_until(lambda: started_by(tmp_path) == [], "the end of all processes", timeout=10)
    assert_stopped_with_a_checkpoint(server.backend.runs["sweep0-0"], tmp_path)
    assert server.backend.runs["sweep0-0"].state == "preempted"
