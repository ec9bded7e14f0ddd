"""Faults of the machine during a sweep: none may change its trials, use them up, or hide how it ended."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend

from cifar10_accel.cli import main
from cifar10_accel.errors import InputError
from cifar10_accel.files import write_text
from cifar10_accel.runs.trial import Trial
from cifar10_accel.subprocesses import split_machine
from cifar10_accel.sweep import results, runner, storage, trial_process
from cifar10_accel.sweep.file import Sweep, read_sweep
from cifar10_accel.sweep.search import Search, read_trials

LRS = [0.1, 0.2, 0.3, 0.4]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sweep file: a grid of four max LRs."""
    constants = {"recipe": "smoke", "val_size": 40, "synthetic_size": 400}
    content = {
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {"max_lr": {"values": LRS}} | {name: {"value": value} for name, value in constants.items()},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def sweep(file: Path) -> Sweep:
    return read_sweep(file)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function after whose call each training is this Python code, with its run folder as `folder`."""

    def replace(code: str) -> None:
        start = "import json, os, signal, sys, time\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"

        def command(flags: list[str], num_processes: int) -> list[str]:
            (folder,) = (flag.removeprefix("--run-dir=") for flag in flags if flag.startswith("--run-dir="))
            return [sys.executable, "-c", start + code, folder]

        monkeypatch.setattr(trial_process, "training_command", command)

    return replace


LOG_ACCURACY = """
with open(folder / "metrics.jsonl", "a") as file:
    file.write('{"step": 1, "epoch": 1, "val/accuracy": 0.5}\\n')
"""


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def run(sweep: Sweep, folder: Path, *, num_trials: int = 4) -> list[Trial]:
    search = Search(sweep, folder, storage=None)
    shares = split_machine(1, num_processes=1)
    runner.run(sweep, search, shares, num_trials=num_trials, num_processes=1, print_line=lambda line: None)
    return search.trials()


def drawn(trials: list[Trial]) -> list[Any]:
    return [trial.parameters["max_lr"] for trial in trials]


def test_runners_may_write_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(path, text), texts * 5))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_an_incomplete_line_of_the_journal_is_no_obstacle(sweep: Sweep, tmp_path: Path) -> None:
    """As a full disk or a power cut leaves it; twice, since the line after it must not be joined to it."""
    folder = tmp_path / "sweep"
    for number in range(2):
        claimed = Search(sweep, folder, storage=None).claim(num_trials=4)
        assert claimed is not None
        claimed.finish("finished", value=0.5, curve=[], seconds=1, reason="")
        with (folder / "journal.log").open("a") as journal:
            journal.write('{"op_code": 5, "wor')
        assert [trial.state for trial in read_trials(sweep, folder, storage=None)] == ["finished"] * (number + 1)


def test_a_journal_that_cannot_be_opened_does_not_stay_locked(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    lock = storage._KernelLock(str(path))
    with pytest.raises(FileNotFoundError):
        lock.acquire()
    with FileLock(f"{path}.lock", timeout=0):  # of another runner
        pass
    path.touch()
    assert lock.acquire()
    with pytest.raises(Timeout):
        FileLock(f"{path}.lock", timeout=0).acquire()
    lock.release()


def test_a_stopped_trial_is_kept_when_fewer_are_asked_for(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    search = Search(sweep, folder, storage=None)
    for state in ("finished", "stopped", "finished"):
        claimed = search.claim(num_trials=3)
        assert claimed is not None
        claimed.finish(state, value=0.5, curve=[], seconds=1, reason="")  # type: ignore[arg-type]
    assert Search(sweep, folder, storage=None).claim(num_trials=1) is None
    again = Search(sweep, folder, storage=None)
    assert [trial.state for trial in again.trials()] == ["finished", "stopped", "finished"]
    while claimed := again.claim(num_trials=4):
        claimed.finish("finished", value=0.5, curve=[], seconds=1, reason="")
    assert drawn(again.trials()) == LRS


def test_missing_data_use_up_no_trial(sweep: Sweep, tmp_path: Path, trainings: Callable[[str], None]) -> None:
    trainings("print('error: no data')\nsys.exit(3)")
    folder = tmp_path / "sweep"
    with pytest.raises(InputError, match=r"^trial 0: no data; then the same command continues"):
        run(sweep, folder)
    (trial,) = read_trials(sweep, folder, storage=None)
    assert (trial.state, trial.reason) == ("stopped", "no data")
    trainings(LOG_ACCURACY)
    trials = run(sweep, folder)
    assert drawn(trials) == LRS
    assert {trial.state for trial in trials} == {"finished"}


def test_a_model_that_raises_ends_its_own_trial_only(
    sweep: Sweep, tmp_path: Path, trainings: Callable[[str], None]
) -> None:
    """It is built after the run folder has been opened, and may raise for the values of one trial."""
    status = "(folder / 'status.json').write_text(json.dumps({'state': 'failed', 'exit_code': 3, 'reason': 'depth'}))"
    trainings(f"{status}\nsys.exit(3)")
    trials = run(sweep, tmp_path / "sweep")
    assert [(trial.state, trial.reason) for trial in trials] == [("failed", "depth")] * 4


def test_data_that_a_trial_names_are_its_own_fault(
    file: Path, tmp_path: Path, trainings: Callable[[str], None]
) -> None:
    content = yaml.safe_load(file.read_text())
    content["parameters"]["data_dir"] = {"values": ["nowhere", "elsewhere"]}
    file.write_text(yaml.safe_dump(content))
    trainings("print('error: no data')\nsys.exit(3)")
    trials = run(read_sweep(file), tmp_path / "sweep", num_trials=2)
    assert [(trial.state, trial.reason) for trial in trials] == [("failed", "no data")] * 2


def test_a_trial_that_is_ended_before_it_can_save_is_continued(
    sweep: Sweep, tmp_path: Path, trainings: Callable[[str], None]
) -> None:
    trainings(f"os.kill(os.getpid(), signal.SIGTERM) if not (folder / 'again').exists() else None\n{LOG_ACCURACY}")
    folder = tmp_path / "sweep"
    assert {trial.state for trial in run(sweep, folder)} == {"stopped"}
    for path in folder.glob("trial-*"):
        (path / "again").touch()
    assert [(trial.state, trial.value) for trial in run(sweep, folder)] == [("finished", 0.5)] * 4


def test_the_last_value_counts_where_times_are_coarse(
    sweep: Sweep, tmp_path: Path, trainings: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    same_time = "os.utime(folder / 'metrics.jsonl', (1, 1))\n"
    trainings(f"{LOG_ACCURACY}{same_time}time.sleep(0.5)\n{LOG_ACCURACY.replace('0.5', '0.9')}{same_time}")
    (trial,) = run(sweep, tmp_path / "sweep", num_trials=1)
    assert trial.value == 0.9


@pytest.mark.parametrize("is_full_disk", [False, True])
def test_a_stop_signal_counts_also_if_the_storage_does_not_answer(
    is_full_disk: bool, sweep: Sweep, tmp_path: Path, trainings: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings("signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\ntime.sleep(60)")
    search = Search(sweep, tmp_path / "sweep", storage=None)

    def no_answer(*args: Any, **kwargs: Any) -> None:
        raise StorageInternalError("gone")

    def stop_and_fail(line: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if is_full_disk:
            monkeypatch.setattr(JournalFileBackend, "append_logs", full)
        else:
            monkeypatch.setattr(search._storage, "set_trial_user_attr", no_answer)

    with pytest.raises(runner.Stopped) as stopped:
        runner.run(
            sweep, search, split_machine(1, num_processes=1), num_trials=4, num_processes=1, print_line=stop_and_fail
        )
    assert stopped.value.exit_code == 143
    assert "while the storage does not answer" in str(stopped.value)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of results can be written."""

    monkeypatch.setattr(results, "write_text", full)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_at_the_start_is_one_line(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["sweep", "run", str(file), "--dir", str(tmp_path / "sweep")])
    assert (done.exit_code, done.stderr.count("\n")) == (5, 1)
    assert "sweep: cannot be written (No space left on device); free some disk space" in done.stderr


def test_a_full_disk_under_the_journal_is_one_line(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    done = CliRunner().invoke(main, ["sweep", "run", str(file), "--dir", str(tmp_path / "sweep")])
    assert (done.exit_code, done.stderr.count("\n")) == (5, 1)
    assert "No space left on device" in done.stderr


def test_results_that_cannot_be_written_do_not_hide_a_stop(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def stop(sweep: Sweep, search: Search, shares: Any, **options: Any) -> None:
        assert search.claim(num_trials=4)
        request.getfixturevalue("full_disk")
        raise runner.Stopped(signal.SIGTERM, state="with 0 of 4 trials done, all saved")

    monkeypatch.setattr(runner, "run", stop)
    done = CliRunner().invoke(main, ["sweep", "run", str(file), "--dir", str(tmp_path / "sweep")])
    assert done.exit_code == 143
    warning, error = done.stderr.splitlines()
    assert "cannot be written" in warning
    assert "stopped with 0 of 4 trials done" in error


def test_a_launcher_with_several_processes_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(main, ["sweep", "run", str(file), "--dir", str(tmp_path / "sweep")])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "sweep run starts its own processes" in done.stderr
    assert not (tmp_path / "sweep").exists()
