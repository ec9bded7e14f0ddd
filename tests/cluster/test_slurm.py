"""The batch scripts under a real Slurm: exit codes are kept, and a preempted job ends with the same weights."""

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster_hosts import Hosts
from cluster_slurm import Slurm, start_slurm
from training_commands import REPOSITORY

TRAIN, SWEEP = (REPOSITORY / "examples" / name for name in ("slurm.sbatch", "sweep.sbatch"))
TINY = ["--recipe", "smoke", "--synthetic-size", "300", "--width", "4", "--tracker", "none", "--log-every", "1"]


@pytest.fixture(scope="module")
def slurm(hosts: Hosts) -> Iterator[Slurm]:
    """The cluster of the module's tests."""
    with start_slurm(hosts) as started:
        yield started


@pytest.fixture
def folder(hosts: Hosts, slurm: Slurm, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the test submits from; the jobs' logs, and runs/, are in it."""
    path = hosts.folder / request.node.name
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def log_of(folder: Path, job: int | str) -> str:
    """Return what a job has written."""
    path = folder / f"slurm-{job}.out"
    return path.read_text() if path.exists() else ""


def weights(folder: Path, job: int) -> bytes:
    """Return the final weights of a job's run."""
    run = folder / "runs" / f"slurm-{job}"
    assert json.loads((run / "status.json").read_text())["state"] == "finished", log_of(folder, job)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return (newest / "model.safetensors").read_bytes()


def wait_for_steps(folder: Path, job: int, number: int) -> None:
    """Wait until a job's run has recorded so many lines."""
    path, until = folder / "runs" / f"slurm-{job}" / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < number:
        assert time.monotonic() < until, log_of(folder, job)
        time.sleep(0.05)


def test_a_preempted_job_is_requeued_and_ends_with_the_same_weights(slurm: Slurm, folder: Path) -> None:
    """Two jobs share both machines, where a fixed port would end the second; one gets SIGTERM in the middle."""
    whole, stopped = (slurm.sbatch(TRAIN, *TINY, "--epochs=4", cwd=folder) for _ in range(2))
    wait_for_steps(folder, stopped, 4)
    assert slurm.job(whole)["JobState"] == slurm.job(stopped)["JobState"] == "RUNNING"
    slurm.run("scancel", "--signal=TERM", str(stopped))
    slurm.start_again(stopped)
    for job in (whole, stopped):
        ended = slurm.wait_for(job, "COMPLETED", "FAILED")
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log_of(folder, job)
        assert ended["Restarts"] == ("1" if job == stopped else "0")
    assert "stopped after step" in log_of(folder, stopped)
    assert "resuming from " in log_of(folder, stopped)
    assert weights(folder, stopped) == weights(folder, whole)


@pytest.mark.parametrize("flag", ["--max-lr=abc", "--batch-size=51"])
def test_a_job_with_a_wrong_setting_has_failed(flag: str, slurm: Slurm, folder: Path) -> None:
    """Refused before the processes meet, and after; also where the folder says that an earlier start was preempted."""
    run = folder / "runs" / "old"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "preempted", "exit_code": 143, "reason": ""}, indent=1))
    job = slurm.sbatch(TRAIN, *TINY, flag, cwd=folder, RUN_DIR=str(run))
    ended = slurm.wait_for(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), log_of(folder, job)
    assert flag.split("=")[1] in log_of(folder, job)


def test_gpus_need_as_many_processes(slurm: Slurm, folder: Path) -> None:
    job = slurm.sbatch("--gpus-per-node=4", TRAIN, *TINY, cwd=folder)
    ended = slurm.wait_for(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "error: 4 GPUs but 1 process(es) on each machine; give --ntasks-per-node=4" in log_of(folder, job)


def test_each_task_of_an_array_is_a_worker_of_the_sweep(slurm: Slurm, folder: Path) -> None:
    """One of the two is preempted, and its trial continues."""
    constants = {"recipe": "smoke", "val_size": 100, "synthetic_size": 300, "width": 4}
    content = {
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {"max_lr": {"values": [0.05, 0.1, 0.2, 0.4]}}
        | {key: {"value": value} for key, value in constants.items()},
    }
    (folder / "lrs.yaml").write_text(yaml.safe_dump(content))
    array = slurm.sbatch("--array=0-1", SWEEP, "lrs.yaml", cwd=folder)
    sweep, until = folder / "runs" / "sweeps" / "lrs", time.monotonic() + 120
    while len(list(sweep.glob("trial-*/metrics.jsonl"))) < 2:
        assert time.monotonic() < until, log_of(folder, f"{array}_0") + log_of(folder, f"{array}_1")
        time.sleep(0.1)
    slurm.run("scancel", "--signal=TERM", f"{array}_1")
    slurm.start_again(f"{array}_1")
    for task in range(2):
        ended = slurm.wait_for(f"{array}_{task}", "COMPLETED", "FAILED")
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log_of(folder, f"{array}_{task}")
    logs = [log_of(folder, f"{array}_{task}") for task in range(2)]
    assert all(" starts: max_lr" in log for log in logs), logs
    assert "continues: max_lr" in "".join(logs)
    with (sweep / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(row["max_lr"]) for row in rows) == [0.05, 0.1, 0.2, 0.4]
    assert {row["state"] for row in rows} == {"finished"}
