"""status.json from the moment at which a run folder is opened."""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from training_commands import TINY

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import InputError, OutOfResourcesError, Preempted, SettingsError
from cifar10_accel.runs.run_folder import RESULTS, RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit


def _preempt(run: Path) -> RunFolder:
    folder = RunFolder(run)
    folder.open(Settings(**TINY))
    folder.metrics.touch()  # after the first step another start may not have other settings
    with pytest.raises(Preempted), folder.record_status(is_main=True):
        raise Preempted(15, step=1, stop_step=2)
    assert folder.read_json("status.json")["state"] == "preempted"
    return folder


def test_a_start_replaces_the_state_of_the_one_before(tmp_path: Path) -> None:
    _preempt(tmp_path / "run")
    again = RunFolder(tmp_path / "run")
    again.open(Settings(**TINY))
    assert again.read_json("status.json") == {"state": "starting", "exit_code": None, "reason": ""}


def test_a_refused_start_replaces_it_too(tmp_path: Path) -> None:
    folder = _preempt(tmp_path / "run")
    with pytest.raises(SettingsError, match="other settings"):
        RunFolder(tmp_path / "run").open(Settings(**TINY | {"max_lr": 0.01}))
    found = folder.read_json("status.json")
    assert (found["state"], found["exit_code"]) == ("failed", 2)
    assert "max_lr" in found["reason"]


def test_a_start_on_other_images_of_a_folder_is_refused(tmp_path: Path) -> None:
    """The folder itself may have been moved."""
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    labels = np.array([0, 1] * 3)

    def dataset(images: Any, *names: str) -> Dataset:
        return Dataset(name="folder", train=(images, labels), test=(images, labels), class_names=names)

    def start(data_dir: str, dataset: Dataset) -> None:
        RunFolder(tmp_path / "run").open(Settings(**TINY | {"dataset": "folder", "data_dir": data_dir}), dataset)

    trained = dataset(images, "cat", "dog")
    start("there", trained)
    folder = RunFolder(tmp_path / "run")
    folder.metrics.touch()
    recorded = {"classes": trained.class_names, "images": trained.image_format.to_json()}
    folder.write_json("environment.json", recorded)
    for other in (dataset(images // 2, "cat", "dog"), dataset(images, "cat", "horse")):
        with pytest.raises(SettingsError, match=r"\(other images in data_dir here\)"):
            start("here", other)
    start("here", trained)


def test_a_start_without_a_step_leaves_no_image_format(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(Settings(**TINY))
    images = {"size": 16, "channels": 1, "mean": [0.5], "std": [0.25]}
    folder.write_json("environment.json", {"images": images})
    assert folder.recorded_image_format() is None
    folder.metrics.touch()
    assert folder.recorded_image_format() == ImageFormat(16, 1, (0.5,), (0.25,))


def test_a_failure_after_the_end_leaves_the_run_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for state, code in (("failed", 3), ("finished", 0), ("finished", 0)):
        folder.open(Settings(**TINY))
        with suppress(InputError), folder.record_failure(is_main=True):
            raise InputError("no model")
        status = folder.read_json("status.json")
        assert (status["state"], status["exit_code"]) == (state, code)
        folder.open(Settings(**TINY))  # it was unlocked
        with folder.record_status(is_main=True):
            pass


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(Settings(**TINY))
    folder.metrics.touch()
    with folder.record_status(is_main=True):
        pass
    with pytest.raises(SettingsError, match="other settings"):
        RunFolder(tmp_path / "run").open(Settings(**TINY | {"max_lr": 0.01}))
    RunFolder(tmp_path / "run").open(Settings(**TINY))
    assert folder.is_finished()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after whose call no file can be written."""

    def fill() -> None:
        def fail(path: Path, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("cifar10_accel.runs.run_folder.write_text", fail)

    return fill


def test_a_full_disk_is_one_line_and_the_settings_stay(tmp_path: Path, full_disk: Callable[[], None]) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(Settings(**TINY))
    with pytest.raises(Preempted), folder.record_status(is_main=True):
        raise Preempted(15, step=1, stop_step=2)
    before = folder.settings()
    full_disk()
    with pytest.raises(OutOfResourcesError, match=r"run/status\.json: cannot be written \(No space left on device\)"):
        RunFolder(tmp_path / "run").open(Settings(**TINY))
    assert folder.settings() == before
    with pytest.raises(OutOfResourcesError, match="cannot be written"):  # not: is in use
        RunFolder(tmp_path / "run").open(Settings(**TINY))


def test_a_full_disk_does_not_take_the_place_of_another_error(tmp_path: Path, full_disk: Callable[[], None]) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(Settings(**TINY))

    def train() -> None:
        with folder.record_status(is_main=True):
            full_disk()
            raise InputError("the true reason")

    with pytest.raises(InputError, match="the true reason"):
        train()


def test_a_run_that_goes_on_has_no_results_of_its_earlier_end(tmp_path: Path) -> None:
    run = fit(Settings(**TINY | {"run_dir": tmp_path / "run", "max_steps": 1}))
    assert run.summary["step"] == 1
    assert set(RESULTS) - {path.name for path in run.path.iterdir()} == {"robustness.json", "robustness.png"}
    (run.path / "robustness.json").write_text("{}")
    folder = RunFolder(run.path)
    folder.open(run.settings)
    assert run.summary["step"] == 1  # it may still turn out that there is nothing to train
    with pytest.raises(Preempted), folder.record_status(is_main=True):
        raise Preempted(15, step=1, stop_step=2)
    assert not {path.name for path in run.path.iterdir()} & set(RESULTS)
    assert run.summary == {}
    with pytest.raises(InputError):
        run.predictions()


def test_a_training_that_cannot_begin_leaves_its_reason_and_no_lock(tmp_path: Path) -> None:
    settings = Settings(**TINY | {"run_dir": tmp_path / "run", "max_steps": 1})
    for _ in range(2):
        with pytest.raises(
            SettingsError, match="no_such_tracker"
        ) as kept:  # the exception keeps the folder's lock alive
            fit(settings.replace(tracker="no_such_tracker:Tracker"))
        with FileLock(tmp_path / "run" / ".lock", timeout=0):
            pass
        status = RunFolder(tmp_path / "run").read_json("status.json")
        assert (status["state"], status["exit_code"]) == ("failed", kept.value.exit_code)
        assert "no_such_tracker" in status["reason"]


def test_the_remains_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "dynamics.npz.0123abcd.tmp").touch()
    RunFolder(tmp_path / "run").open(Settings(**TINY))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_finished_run_that_has_nothing_to_train_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")  # kept here: a lock that nothing refers to is released
    monkeypatch.setattr(RunFolder, "of", lambda settings: folder)
    settings = Settings(**TINY | {"run_dir": tmp_path / "run", "max_steps": 1})
    run = [fit(settings) for _ in range(2)][1]
    with FileLock(run.path / ".lock", timeout=0):
        pass
