"""Listing of run folders: all found, damaged ones counted, nothing large read, while runs are written."""

import json
import math
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from listed_runs import make_run
from training_commands import REPOSITORY

from cifar10_accel.errors import InputError
from cifar10_accel.runs.listing import ListedRun, list_runs, read_curve
from cifar10_accel.runs.metrics_jsonl import append_metrics


def only_run(folder: Path) -> ListedRun:
    listing = list_runs(folder)
    assert listing.unreadable == []
    assert len(listing.runs) == 1
    return listing.runs[0]


def test_runs_in_any_depth_are_found_once(tmp_path: Path) -> None:
    names = {"plain", "repeat/cpu/seed-0", "repeat/cpu/seed-10", "sweeps/s/trial-0001", "a b/[bold]é"}
    for name in names:
        make_run(tmp_path / name, test=0.5)
    (tmp_path / "repeat" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sweeps" / "again").symlink_to(tmp_path / "plain", target_is_directory=True)
    (tmp_path / "plain" / "checkpoints" / "settings").mkdir(parents=True)
    listing = list_runs(tmp_path)
    assert len(listing.runs) == len(names)
    assert {run.path.resolve() for run in listing.runs} == {(tmp_path / name).resolve() for name in names}
    assert {run.seconds for run in listing.runs} == {61.0}


def test_a_link_that_leads_nowhere_hides_no_run(tmp_path: Path) -> None:
    make_run(tmp_path / "good", test=0.5)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    assert only_run(tmp_path).name == "good"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    listing = list_runs(tmp_path)
    assert [run.name for run in listing.runs] == ["good"]
    assert [sentence.split(":")[0] for sentence in listing.unreadable] == [str(tmp_path / "circle")]


def test_a_run_folder_is_a_listing_of_one(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", test=0.5)
    run = only_run(tmp_path / "mine")
    assert (run.name, run.is_listed_folder) == ("mine", True)


@pytest.mark.parametrize(
    ("measured", "state", "accuracy", "split"),
    [
        ({"test": 0.8, "val": 0.7, "tta": 0.9}, "finished", 0.8, "test"),
        ({"val": 0.7}, "finished", 0.7, "val"),
        ({"val": 0.7}, "running", 0.7, "val"),
        ({"test": 0.8}, "failed", 0.8, "test"),
        ({}, "running", None, ""),
    ],
)
def test_the_accuracy_is_that_on_the_test_set_or_else_on_the_hold_out(
    measured: dict[str, float], state: str, accuracy: float | None, split: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", state=state, **measured)
    run = only_run(tmp_path)
    assert (run.accuracy, run.split, run.state) == (accuracy, split, state)
    assert run.tta == measured.get("tta")
    assert (run.seconds is None) == (state != "finished")
    expected = [] if accuracy is None else [(float(epoch), accuracy * epoch / 4) for epoch in range(1, 5)]
    assert read_curve(run).points == expected


def test_the_curve_is_of_the_hold_out_where_there_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", val=0.5)
    append_metrics(run / "metrics.jsonl", {"val/accuracy": 0.5, "test/accuracy": 0.4}, step=40, epoch=4)
    append_metrics(run / "metrics.jsonl", {"val/accuracy": math.nan}, step=50, epoch=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "val/accuracy": 0.5}\n{"step": 60, "epoch": "six", "val/accuracy": 0.5}\n')
    curve = read_curve(only_run(tmp_path))
    assert curve.split == "val"
    assert [epoch for epoch, _ in curve.points] == [1, 2, 3, 4, 4]


def test_a_silent_run_is_stale(tmp_path: Path) -> None:
    """A killed process cannot write that it has ended."""
    make_run(tmp_path / "killed", state="running", age=3600)
    make_run(tmp_path / "alive", state="running", age=60)
    assert {run.name: run.state for run in list_runs(tmp_path).runs} == {"killed": "stale", "alive": "running"}


DAMAGE = {
    "not YAML": b"a: [",
    "a list": b"- 1\n- 2\n",
    "a word": b"hello",
    "empty": b"",
    "not UTF-8": b"recipe: \xff\xfe",
    "nested too deeply": b"{a: " * 20_000 + b"}" * 20_000,
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folders_are_counted(content: bytes, tmp_path: Path) -> None:
    make_run(tmp_path / "good", test=0.5)
    make_run(tmp_path / "bad", test=0.5)
    (tmp_path / "bad" / "settings.yaml").write_bytes(content)
    listing = list_runs(tmp_path)
    assert [run.name for run in listing.runs] == ["good"]
    assert len(listing.unreadable) == 1
    assert "bad/settings.yaml" in listing.unreadable[0]
    assert "\n" not in listing.unreadable[0]


def test_folders_without_settings_and_unreadable_ones_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "good", test=0.5)
    make_run(tmp_path / "half", test=0.5)
    (tmp_path / "half" / "settings.yaml").unlink()
    make_run(tmp_path / "folder", test=0.5)
    (tmp_path / "folder" / "settings.yaml").unlink()
    (tmp_path / "folder" / "settings.yaml").mkdir()
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse_locked(path: Path) -> object:  # root may read every folder
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse_locked)
        listing = list_runs(tmp_path)
        with pytest.raises(InputError, match="cannot be listed"):
            list_runs(tmp_path / "locked")
    assert [run.name for run in listing.runs] == ["good"]
    assert sorted(sentence.split(":")[0] for sentence in listing.unreadable) == [
        str(tmp_path / name) for name in ("folder", "half", "locked")
    ]
    with pytest.raises(InputError, match="cannot be listed"):
        list_runs(tmp_path / "nothing")


@pytest.mark.parametrize("value", ["high", None, True, [0.5], float("nan"), float("inf")], ids=repr)
def test_a_summary_with_other_values_is_replaced_by_the_metrics(value: object, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", test=0.5)
    (run / "summary.json").write_text(json.dumps({"test/accuracy": value, "train_seconds": value}))
    (run / "status.json").write_text("[]")
    listed = only_run(tmp_path)
    assert (listed.accuracy, listed.seconds, listed.state) == (0.5, None, "unknown")


def test_only_the_end_of_the_metrics_is_read(tmp_path: Path) -> None:
    """Eight gigabytes could not be read in the time of a test, or kept in memory; the file is sparse."""
    run = make_run(tmp_path / "run", state="running", test=0.5)
    size = 8 * 1024**3
    with (run / "metrics.jsonl").open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(b'\n{"step": 50, "epoch": 5.0, "test/accuracy": 0.625}\n{"step": 51, "test/acc')
    assert only_run(tmp_path).accuracy == 0.625


def test_runs_of_earlier_versions_have_their_present_names() -> None:
    runs = list_runs(REPOSITORY / "tests" / "runs" / "earlier_version").runs
    assert {run.name: (run.value("model"), run.state) for run in runs} == {
        "resnet24-finished": ("resnet9", "finished"),
        "speed94-stopped": ("airbench94", "finished"),
    }


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [("2024-02-03T04:05:06+00:00", True), ("2024-02-03T05:05:06+01:00", True), ("yesterday", False), (12, False)],
)
def test_the_date_is_the_recorded_start_or_else_that_of_the_status(
    recorded: object, expected: bool, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", age=3600)
    (run / "environment.json").write_text(json.dumps({"date": recorded}))
    start = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()
    changed = (run / "status.json").stat().st_mtime
    assert only_run(tmp_path).date.timestamp() == pytest.approx(start if expected else changed, abs=0.001)


def test_listing_while_runs_come_and_go(tmp_path: Path) -> None:
    """Folders appear, grow and vanish during the listing: the others are listed all the same."""
    for number in range(5):
        make_run(tmp_path / f"lasting-{number}", test=0.5)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            run = make_run(tmp_path / f"passing-{number}", state="running", test=0.4)
            for file in sorted(run.iterdir()):
                file.unlink()
            run.rmdir()
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(100):
            names = [run.name for run in list_runs(tmp_path).runs]
            assert sum(name.startswith("lasting") for name in names) == 5
    finally:
        stop.set()
        thread.join()
