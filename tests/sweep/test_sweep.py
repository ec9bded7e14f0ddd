"""Local sweeps: exactly N trials although processes are killed, each in its folder, and results that can be rerun."""

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from training_commands import REPOSITORY, run_python

from cifar10_accel.cli import main
from cifar10_accel.errors import SettingsError
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.trial import SweepView, Trial
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import split_machine
from cifar10_accel.sweep import runner, trial_process
from cifar10_accel.sweep.file import Sweep, read_sweep
from cifar10_accel.sweep.importance import importance_of
from cifar10_accel.sweep.results import as_recipe, best_of
from cifar10_accel.sweep.search import Search, read_trials

TRAINING = Path(__file__).parent.parent / "support" / "sweep_training.py"
# The command line with a substitute for the training.
WITH_SUBSTITUTE = (
    "import sys\nfrom cifar10_accel.sweep import trial_process\n"
    f"trial_process.training_command = lambda flags, num_processes: [sys.executable, {str(TRAINING)!r}, *flags]\n"
    "from cifar10_accel.cli import main\nmain()"
)
SPACES: dict[str, Any] = {
    "max_lr": {"distribution": "log_uniform_values", "min": 1.0e-3, "max": 10.0},
    "momentum": {"distribution": "uniform", "min": 0.5, "max": 0.9},
    "width": {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8},
    "crop_padding": {"min": 1, "max": 4},
    "div_factor": {"distribution": "q_uniform", "min": 5, "max": 25, "q": 2.5},
    "nesterov": {"values": [True, False]},
    "flip_mode": {"values": ["random", "alternating"], "probabilities": [0.9, 0.1]},
}
CONSTANTS: dict[str, Any] = {
    "recipe": {"value": "smoke"},
    "val_size": {"value": 40},
    "synthetic_size": {"value": 400},
    "epochs": {"value": 5},
    "peak_epoch": {"value": 1},
}


def sweep_file(path: Path, parameters: dict[str, Any] | None = None, **values: Any) -> Path:
    """Write a sweep file: a random search of twelve max LRs, unless other values are given."""
    searched = {"max_lr": SPACES["max_lr"]} if parameters is None else parameters
    given = {
        "method": "random",
        "run_cap": 12,
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": CONSTANTS | searched,
    }
    path.write_text(yaml.safe_dump(given | values))
    return path


@pytest.fixture
def _substitute_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trial_process, "training_command", lambda flags, num_processes: [sys.executable, str(TRAINING), *flags]
    )


def run_here(sweep: Sweep, folder: Path, *, num_trials: int, workers: int = 2) -> tuple[list[Trial], list[str]]:
    """Run a sweep in this process; return its trials and the lines it printed."""
    lines: list[str] = []
    search = Search(sweep, folder, storage=None)
    shares = split_machine(workers, num_processes=1)
    runner.run(sweep, search, shares, num_trials=num_trials, num_processes=1, print_line=lines.append)
    return search.trials(), lines


# --- The search ---


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_draws_follow_the_distributions_of_the_file(method: str, tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path / "s.yaml", SPACES, method=method))
    search = Search(sweep, tmp_path / "sweep", storage=None)
    for _ in range(40):
        claimed = search.claim(num_trials=40)
        assert claimed is not None
        claimed.finish("finished", value=0.5, curve=[], seconds=0, reason="")
    drawn = {name: [trial.parameters[name] for trial in search.trials()] for name in SPACES}
    numbers: dict[str, Any] = drawn
    assert len(set(drawn["max_lr"])) == 40
    assert all(1e-3 <= lr <= 10 for lr in numbers["max_lr"])
    assert 0.01 < sorted(numbers["max_lr"])[20] < 1  # the middle of the range on a log scale is 0.1, of the plain 5
    assert all(0.5 <= momentum <= 0.9 for momentum in numbers["momentum"])
    assert set(drawn["width"]) <= {8, 16, 24, 32, 40, 48, 56, 64}
    assert len(set(drawn["width"])) > 3
    assert set(drawn["crop_padding"]) == {1, 2, 3, 4}
    assert set(drawn["div_factor"]) <= {5.0, 7.5, 10.0, 12.5, 15.0, 17.5, 20.0, 22.5, 25.0}
    assert set(drawn["nesterov"]) == {True, False}
    assert drawn["flip_mode"].count("random") > 25


def test_bayes_samples_near_good_values(tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path / "s.yaml", method="bayes"))
    search, misses = Search(sweep, tmp_path / "sweep", storage=None), list[float]()
    while claimed := search.claim(num_trials=25):
        misses.append(abs(math.log10(float(str(claimed.parameters["max_lr"])) / 0.05)))
        claimed.finish("finished", value=-misses[-1], curve=[], seconds=0, reason="")
    assert sum(misses[-10:]) < 0.5 * sum(misses[:10])


def test_a_grid_is_run_in_order_and_once(tmp_path: Path) -> None:
    points = {
        "max_lr": {"values": [0.1, 0.2]},
        "momentum": {"distribution": "q_uniform", "min": 0.7, "max": 0.9, "q": 0.1},
    }
    sweep = read_sweep(sweep_file(tmp_path / "g.yaml", points, method="grid"))
    first, second = (Search(sweep, tmp_path / "sweep", storage=None) for _ in range(2))
    claimed = [search.claim(num_trials=6) for search in (first, second, second, first, second, first)]
    drawn = [one.parameters for one in claimed if one]
    assert drawn == [{"max_lr": lr, "momentum": m} for lr in (0.1, 0.2) for m in (0.7, 0.8, 0.9)]
    assert first.claim(num_trials=6) is None


def claim_all(sweep: Sweep, folder: Path, storage: str | None) -> list[int]:
    """Return the numbers of the trials, of ten, that one worker claims."""
    search, numbers = Search(sweep, folder, storage=storage), list[int]()
    while claimed := search.claim(num_trials=10):
        numbers.append(claimed.number)
        claimed.finish("finished", value=claimed.number / 10, curve=[], seconds=0, reason="")
    return numbers


@pytest.mark.parametrize("machines", ["one", "two"])
def test_workers_at_once_take_each_trial_once(machines: str, tmp_path: Path) -> None:
    """Four workers of one folder; or two in each of two folders that share nothing but a database."""
    sweep = read_sweep(sweep_file(tmp_path / "s.yaml"))
    storage = f"sqlite:///{tmp_path / 'study.db'}" if machines == "two" else None
    folders = [tmp_path / ("a" if machines == "one" or worker % 2 else "b") for worker in range(4)]
    with ThreadPoolExecutor(4) as workers:
        taken = list(workers.map(lambda folder: claim_all(sweep, folder, storage), folders))
    trials = read_trials(sweep, folders[0], storage=storage)
    assert sorted(number for numbers in taken for number in numbers) == [trial.number for trial in trials]
    assert len(trials) == 10
    assert {trial.state for trial in trials} == {"finished"}
    assert len({trial.parameters["max_lr"] for trial in trials}) == 10


def test_a_trial_left_behind_goes_to_its_own_folder_only(tmp_path: Path) -> None:
    sweep, storage = read_sweep(sweep_file(tmp_path / "s.yaml")), f"sqlite:///{tmp_path / 'study.db'}"
    here, there = (Search(sweep, tmp_path / name, storage=storage) for name in ("here", "there"))
    claimed = here.claim(num_trials=2)
    assert claimed is not None
    claimed.report([0.1, 0.2], seconds=5)
    claimed.finish("stopped", value=None, curve=[(1, 0.1), (2, 0.2)], seconds=5, reason="")
    elsewhere = there.claim(num_trials=2)
    assert elsewhere is not None
    assert elsewhere.number == 1
    assert [(trial.state, trial.value) for trial in here.trials()] == [("stopped", 0.2), ("running", None)]
    again = Search(sweep, tmp_path / "here", storage=storage).claim(num_trials=2)
    assert again is not None
    assert (again.number, again.parameters) == (0, claimed.parameters)
    again.finish("finished", value=0.3, curve=[], seconds=2, reason="")
    assert here.trials()[0].seconds == 7


def test_another_sweep_is_not_mixed_in(tmp_path: Path) -> None:
    Search(read_sweep(sweep_file(tmp_path / "s.yaml")), tmp_path / "sweep", storage=None)
    Search(read_sweep(sweep_file(tmp_path / "s.yaml", run_cap=99)), tmp_path / "sweep", storage=None)
    other = read_sweep(sweep_file(tmp_path / "s.yaml", {"max_lr": {"min": 0.1, "max": 0.2}}))
    with pytest.raises(SettingsError, match="differs in max_lr"):
        Search(other, tmp_path / "sweep", storage=None)
    with pytest.raises(SettingsError, match="storage: cannot be read as a URL"):
        Search(other, tmp_path / "sweep", storage="nonsense")


# --- The runner, with a substitute for the training ---


@pytest.mark.usefixtures("_substitute_training")
def test_a_sweep_goes_on_when_trials_fail(tmp_path: Path) -> None:
    points = {"max_lr": {"values": [0.01, 900.0, 0.1, 1.0]}}
    sweep = read_sweep(sweep_file(tmp_path / "s.yaml", points, method="grid"))
    trials, lines = run_here(sweep, tmp_path / "sweep", num_trials=4)
    assert [trial.state for trial in trials] == ["finished", "failed", "finished", "finished"]
    assert trials[1].reason == "the loss is nan at update 3"
    assert [trial.value for trial in trials] == [0.25, None, 0.5, 0.25]
    assert trials[2].curve == tuple((epoch, epoch / 10) for epoch in range(1, 6))
    assert sum(line.startswith("trial") for line in lines) == 8
    assert any("trial 1 failed: the loss is nan at update 3" in line for line in lines)
    assert "best 50.00% (trial 2); 4 of 4 done" in lines[-1]
    again, lines = run_here(sweep, tmp_path / "sweep", num_trials=4)
    assert (again, lines) == (trials, [])


@pytest.mark.usefixtures("_substitute_training")
def test_trials_that_are_behind_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, best first: with eta 2 each later one is behind at the first rung, and never reaches the end."""
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "0.5")
    points = {"max_lr": {"values": [0.1, 0.001, 1.0]}, "epochs": {"value": 8}}
    halving = {"type": "hyperband", "min_iter": 2, "eta": 2}
    sweep = read_sweep(sweep_file(tmp_path / "s.yaml", points, method="grid", early_terminate=halving))
    trials, lines = run_here(sweep, tmp_path / "sweep", num_trials=3, workers=1)
    assert [trial.state for trial in trials] == ["finished", "pruned", "pruned"]
    assert trials[0].value == 0.8
    for trial in trials[1:]:
        assert 2 <= len(trial.curve) < 8
        assert "behind at epoch" in trial.reason
        assert json.loads((Path(trial.where) / "status.json").read_text())["state"] == "preempted"
    assert sum(" pruned after " in line for line in lines) == 2


def start(cwd: Path, *args: str, epoch_seconds: float = 0.2) -> "subprocess.Popen[str]":
    """`cifar10-accel sweep run ARGS` with the substitute for the training."""
    return subprocess.Popen(
        [sys.executable, "-c", WITH_SUBSTITUTE, "sweep", "run", *args],
        cwd=cwd,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "FAKE_EPOCH_SECONDS": str(epoch_seconds), "COLUMNS": "200"},
    )


def wait_for(process: "subprocess.Popen[str]", folder: Path, num_folders: int) -> None:
    """Wait until so many trials have logged a value; fail if the sweep ends before."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("trial-*/metrics.jsonl"))) < num_folders:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trainings_alive(folder: Path) -> list[int]:
    """Return the pids of a sweep's trainings that still run."""
    pids = [int(pid) for path in folder.glob("trial-*/pids") for pid in path.read_text().split()]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def wait_until_none_alive(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while trainings_alive(folder):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.05)


def check_whole(folder: Path, *, num_trials: int) -> list[dict[str, str]]:
    """Return the lines of results.csv after checking that the sweep equals an uninterrupted one."""
    assert len(list(folder.glob("trial-*"))) == num_trials
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(num_trials))
    assert len({row["max_lr"] for row in rows}) == num_trials
    assert len({row["where"] for row in rows}) == num_trials
    for path in folder.glob("trial-*/metrics.jsonl"):
        epochs = [line["epoch"] for line in read_metrics(path) if "val/accuracy" in line]
        assert epochs == sorted(set(epochs)), path
    return rows


def test_killed_again_and_again_it_ends_with_twelve(tmp_path: Path) -> None:
    file, folder = str(sweep_file(tmp_path / "s.yaml")), tmp_path / "runs" / "sweeps" / "s"
    for num_folders in (2, 5, 9):
        process = start(tmp_path, file, "--workers=2")
        wait_for(process, folder, num_folders)
        process.kill()
        process.communicate()
    process = start(tmp_path, file, "--workers=2", epoch_seconds=0.05)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "continues: max_lr" in stdout
    rows = check_whole(folder, num_trials=12)
    assert {row["state"] for row in rows} == {"finished"}
    assert "PED-ANOVA" in (folder / "sweep.html").read_text()
    wait_until_none_alive(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_saves_all_and_the_same_command_continues(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    file, folder = str(sweep_file(tmp_path / "s.yaml", run_cap=3)), tmp_path / "there"
    process = start(tmp_path, file, "--workers=2", f"--dir={folder}", epoch_seconds=1)
    wait_for(process, folder, 2)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "stopped with 0 of 3 trials done, all saved; the same command continues" in stderr
    assert stdout.count("stopped: the same command continues it") == 2
    assert trainings_alive(folder) == []
    assert "Traceback" not in stderr
    process = start(tmp_path, file, "--workers=2", f"--dir={folder}", epoch_seconds=0.01)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout.count("continues: max_lr") == 2
    check_whole(folder, num_trials=3)


def test_two_runners_share_a_sweep(tmp_path: Path) -> None:
    file, folder = str(sweep_file(tmp_path / "s.yaml")), tmp_path / "runs" / "sweeps" / "s"
    runners = [start(tmp_path, file, epoch_seconds=0.05) for _ in range(2)]
    for process in runners:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert "starts: max_lr" in stdout
    check_whole(folder, num_trials=12)


def test_a_sweep_without_a_single_result_fails(tmp_path: Path) -> None:
    file = sweep_file(tmp_path / "s.yaml", {"max_lr": {"values": [500.0, 900.0]}}, method="grid")
    process = start(tmp_path, str(file))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: all 2 trials failed, the last: the loss is nan at update 3" in stderr
    assert not (tmp_path / "runs" / "sweeps" / "s" / "best.yaml").exists()
    reported = run_python("-m", "cifar10_accel", "sweep", "report", "runs/sweeps/s", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert reported.stdout.count("the loss is nan at update 3") == 2


# --- Shares of the machine, results, and missing things ---


def test_gpus_and_cores_are_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [share.num_threads for share in split_machine(None, num_processes=1)] == [None]
    assert [share.num_threads for share in split_machine(3, num_processes=1)] == [2, 2, 2]
    assert [share.num_threads for share in split_machine(4, num_processes=3)] == [1, 1, 1, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    devices = [share.environment["CUDA_VISIBLE_DEVICES"] for share in split_machine(None, num_processes=1)]
    assert devices == ["4", "5", "7"]
    devices = [share.environment["CUDA_VISIBLE_DEVICES"] for share in split_machine(2, num_processes=2)]
    assert devices == ["4,5", "7,4"]
    with pytest.raises(SettingsError, match="4 for each training, but this machine shows 3"):
        split_machine(None, num_processes=4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: H100 (UUID: x)\\n  MIG 1g (UUID: y)\\nGPU 1: H100 (UUID: z)\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in split_machine(None, num_processes=1)] == ["0", "1"]


def test_the_best_trial_becomes_a_recipe(tmp_path: Path) -> None:
    trials = [
        Trial(
            number=n,
            state=state,
            parameters={"max_lr": lr, "nesterov": False},
            value=value,
            curve=(),
            seconds=1,
            where="",
            reason="",
        )
        for n, (state, lr, value) in enumerate(
            [("finished", 0.5, 0.8), ("pruned", 0.6, 0.99), ("finished", 0.25, 0.9), ("finished", 0.1, 0.9)]
        )
    ]  # type: ignore[misc]
    best = best_of(trials, "maximize")
    assert best is trials[2]
    assert best_of(trials, "minimize") is trials[0]
    recipe = tmp_path / "best.yaml"
    recipe.write_text(as_recipe(best, recipe, metric="val/accuracy", constants={"recipe": "smoke", "val_size": 40}))
    assert f"train --recipe {recipe}" in recipe.read_text()
    settings = Settings(recipe=str(recipe))
    given = Settings(recipe="smoke", val_size=40, max_lr=0.25, nesterov=False)
    assert settings.weight_affecting() == given.weight_affecting()


def test_importance_names_what_made_the_difference() -> None:
    """Accuracy falls with the distance of the LR from 0.1; momentum and nesterov have no effect."""
    trials = [
        Trial(
            number=n,
            state="finished",
            value=-abs(math.log10(lr / 0.1)),
            curve=(),
            seconds=1,
            where="",
            parameters={"max_lr": lr, "momentum": 0.5 + 0.4 * (n * 7 % 24) / 24, "nesterov": n % 2 == 0},
        )
        for n, lr in enumerate(10 ** (-3 + 4 * (step * 5 % 24) / 24) for step in range(24))
    ]
    shares = importance_of(trials, "maximize")
    assert max(shares, key=lambda name: shares[name]) == "max_lr"
    assert shares["max_lr"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert importance_of(trials[:5], "maximize") == importance_of([], "maximize") == {}
    same = [dataclasses.replace(trial, value=0.5) for trial in trials]
    assert importance_of(same, "maximize") == {}


def test_a_sweep_of_wandb_is_shown_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [
        Trial(
            number=n,
            state="finished",
            parameters={"max_lr": 0.1 * (n + 1)},
            value=n / 10,
            curve=(),
            seconds=1,
            where=f"https://wandb.example/run{n}",
        )
        for n in range(3)
    ]
    view = SweepView(title="team/project/abc123", metric="val/accuracy", goal="maximize", trials=tuple(trials))
    pulled: list[str] = []
    fake = SimpleNamespace(pull=lambda path: (pulled.append(path), view)[1])
    monkeypatch.setitem(sys.modules, "cifar10_accel.sweep.wandb_pull", fake)
    result = CliRunner().invoke(main, ["sweep", "report", "team/project/abc123"])
    assert (result.exit_code, pulled) == (0, ["team/project/abc123"]), result.output
    folder = tmp_path / "runs" / "sweeps" / "abc123"
    assert sorted(path.name for path in folder.iterdir()) == ["results.csv", "sweep.html"]
    assert "10.00%" in result.output
    (folder / "results.csv").unlink()
    (folder / "results.csv").mkdir()
    refused = CliRunner().invoke(main, ["sweep", "report", "team/project/abc123"])
    assert refused.exit_code == SettingsError.exit_code
    assert re.fullmatch(r"error: \S+abc123: cannot be written \(.+\); make it writable\n", refused.stderr)


def test_a_missing_sweep_or_package_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(main, ["sweep", "report", str(tmp_path)])
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(main, ["sweep", "run", str(sweep_file(tmp_path / "s.yaml"))])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "pip install 'cifar10-accel[sweep]'" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_local_sweep_that_is_not_there_is_not_looked_for_at_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cifar10_accel.sweep.wandb_pull", None)
    (tmp_path / "mine" / "sweeps").mkdir(parents=True)
    for folder in ("runs/sweeps/smok", "mine/sweeps/smok"):  # the default place, which need not exist, and another
        result = CliRunner().invoke(main, ["sweep", "report", folder])
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
        assert f"{folder}: no sweep.yaml there; give the folder of a sweep" in result.stderr


@pytest.mark.usefixtures("_substitute_training")
def test_a_trial_whose_values_do_not_go_together_fails_alone(tmp_path: Path) -> None:
    """The check of the file sees the extreme values and one between them; 3 does not divide the batch of 64."""
    constants = {"max_lr": {"value": 0.1}, "batch_size": {"value": 64}}
    parameters = constants | {"grad_accum_steps": {"min": 1, "max": 4}}
    sweep = read_sweep(sweep_file(tmp_path / "s.yaml", parameters, method="grid"))
    trials, lines = run_here(sweep, tmp_path / "sweep", num_trials=4, workers=1)
    states = {trial.parameters["grad_accum_steps"]: trial.state for trial in trials}
    assert states == {1: "finished", 2: "finished", 3: "failed", 4: "finished"}
    (failed,) = (line for line in lines if "failed" in line)
    assert "batch_size: 64 cannot be split into 3 equal micro-batches" in failed
    assert "3 of 4 done" in failed


# --- A whole sweep with real trainings (about a minute) ---


@pytest.mark.long
def test_twelve_real_trials_killed_half_way(tmp_path: Path) -> None:
    """kill -9 of the runner in the middle, the same command again: twelve trials, one of them diverged, and a
    recipe that gives the best one's validation accuracy again, bit for bit."""
    tiny = {
        "width": {"value": 4},
        "synthetic_size": {"value": 400},
        "batch_size": {"value": 60},
        "epochs": {"value": 3},
        "log_every": {"value": 1},
        "checkpoint_every": {"value": 0.3},
    }
    lrs = [0.01, 0.02, 0.04, 0.08, 0.1, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 1000.0]
    file = sweep_file(tmp_path / "s.yaml", tiny | {"max_lr": {"values": lrs}}, method="grid")
    folder, command = tmp_path / "runs/sweeps/s", [sys.executable, "-m", "cifar10_accel", "sweep", "run", str(file)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [*command, "--workers=2"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(process, folder, 6)
    process.kill()
    process.communicate()
    done = subprocess.run(
        [*command, "--workers=2"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    rows = check_whole(folder, num_trials=12)
    assert [row["state"] for row in rows] == ["finished"] * 11 + ["failed"]
    assert rows[-1]["reason"]
    alive = subprocess.run(["pgrep", "-f", f"run-dir={folder}"], capture_output=True, text=True).stdout
    assert alive == ""
    best = max(float(row["val/accuracy"]) for row in rows if row["val/accuracy"])
    recipe = (folder / "best.yaml").read_text().splitlines()[0].removeprefix("# cifar10-accel ").split()
    again = run_python("-m", "cifar10_accel", *recipe, "--tracker=none", "--run-dir=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["val/accuracy"] == best
