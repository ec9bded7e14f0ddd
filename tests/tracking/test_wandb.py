"""The W&B backend: complete offline, the same run after a resume, and outages that do not affect the training."""

import contextlib
import functools
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from tracked_run import COLUMNS, CONFIG, IMAGES, ROWS, record_run, steps_in, tracker_for
from wandb_server import answering_500, answering_nonsense, hanging, refusing, serving

from cifar10_accel.errors import Preempted

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _wandb_reads_its_environment_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client reads its environment once per service process; the limits are short enough for tests."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    monkeypatch.delenv("NETRC", raising=False)
    wandb.teardown()
    yield
    with contextlib.suppress(ConnectionError):  # of a service that died in the test
        wandb.teardown()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder that a shell wants quoted."""
    return tmp_path / "my runs" / "first"


@pytest.fixture
def _logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)


def folders(run_dir: Path, pattern: str = "offline-run-*") -> list[Path]:
    return sorted((run_dir / "wandb").glob(pattern))


@functools.cache
def log_of(folder: Path) -> list[dict[str, Any]]:
    """All records of the log of a finished W&B run, read by W&B's own tool."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in log_of(folder) if record["type"] == kind]


def merged(updates: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for update in updates for name, value in update.get("update", {}).items()}


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    rows = [record["item"] for record in records(folder, "history")]
    return [(row["step"], row[name]) for row in rows if name in row]


def test_nobody_logged_in_means_an_offline_run_that_has_everything(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_run(tracker_for(run_dir, tracker="wandb"))
    (folder,) = folders(run_dir)
    out, err = capsys.readouterr()
    assert out == f"this run is not completely on the W&B server; to upload it: wandb sync '{folder}'\n"
    assert err == ""

    assert curve(folder, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert curve(folder, "epoch")[:3] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    config = merged(records(folder, "config"))
    assert {name: config[name] for name in CONFIG} == CONFIG
    summary = merged(records(folder, "summary"))
    assert (summary["test/accuracy"], summary["dataset"]) == (0.875, "synthetic")
    assert {"glob_name": "*", "step_metric": "step"}.items() <= records(folder, "metric")[0].items()
    assert records(folder, "run")[0]["project"] == "cifar10-accel"


def test_tables_arrive_with_their_images(run_dir: Path) -> None:
    record_run(tracker_for(run_dir, tracker="wandb"))
    (folder,) = folders(run_dir)
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in folder.rglob("*.table.json")}
    assert sorted(tables) == ["correct", "misclassified"]
    assert tables["misclassified"]["columns"] == COLUMNS
    assert [row[1:] for row in tables["misclassified"]["data"]] == [row[1:] for row in ROWS]
    staged = [path.read_bytes() for path in (run_dir / "wandb" / "artifacts" / "staging").iterdir() if path.is_file()]
    pictures = {np.asarray(Image.open(io.BytesIO(data))).tobytes() for data in staged if data.startswith(b"\x89PNG")}
    assert pictures == {image.tobytes() for image in IMAGES}


def test_wandb_writes_into_the_run_folder_only(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/proc/home")  # not writable, not even by root
    record_run(tracker_for(run_dir, tracker="wandb"))
    assert [path.name for path in tmp_path.iterdir()] == ["my runs"]
    assert {path.name for path in run_dir.iterdir()} == {"metrics.jsonl", "wandb", "wandb_run_id"}
    assert {"WANDB_DATA_DIR", "WANDB_CACHE_DIR"}.isdisjoint(os.environ)
    assert capfd.readouterr().err == ""


def test_while_it_is_open_the_backend_is_one_of_accelerates_trackers(run_dir: Path) -> None:
    accelerator = Accelerator(cpu=True)
    with tracker_for(run_dir, accelerator=accelerator, tracker="wandb", wandb_mode="offline"):
        assert accelerator.get_tracker("wandb", unwrap=True).id == (run_dir / "wandb_run_id").read_text()
        accelerator.log({"mine": 1.0})
    assert accelerator.trackers == []
    (folder,) = folders(run_dir)
    assert any("mine" in record["item"] for record in records(folder, "history"))


@pytest.mark.parametrize(("number", "is_preempted"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_the_exit_code_is_that_of_the_exception_in_flight(
    number: signal.Signals, is_preempted: bool, run_dir: Path
) -> None:
    """A sweep queues preempted runs again, but not those ended by Ctrl-C."""
    with pytest.raises(Preempted), tracker_for(run_dir, tracker="wandb"):
        raise Preempted(number, step=1, stop_step=2)
    (folder,) = folders(run_dir)
    assert records(folder, "exit") == [{"exit_code": 128 + number}]
    assert len(records(folder, "preempting")) == is_preempted


def log_twice_with_a_resume(run_dir: Path) -> list[tuple[int, float]]:
    """Log 3 steps, resume at step 2 and log 3 more; return the rows that W&B must have."""
    for resume_step in (0, 2):
        time.sleep(1.1 if resume_step else 0)  # W&B names folders by the second
        with tracker_for(run_dir, tracker="wandb", resume_step=resume_step) as tracker:
            for step in range(resume_step + 1, resume_step + 4):
                tracker.log({"x": 1 / step}, step=step, epoch=1.0)
    return [(step, 1 / step) for step in (1, 2, 3, 3, 4, 5)]


def test_the_sessions_of_a_resumed_run_make_one_run_when_they_are_uploaded_with_the_logged_commands(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = log_twice_with_a_resume(run_dir)
    commands = [shlex.split(line.split("upload it: ")[1]) for line in capsys.readouterr().out.splitlines()]
    with serving() as server:
        there = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789" * 4}
        there.pop("WANDB_SERVICE", None)  # the service of this process
        for command in commands:
            subprocess.run([sys.executable, "-m", *command], env=there, check=True, capture_output=True)
    rows = server.history[(run_dir / "wandb_run_id").read_text()]
    assert [(row["step"], row["x"]) for row in rows] == expected


def test_inside_a_sweep_the_agent_names_the_run(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("max_lr: {value: 0.4}\n")
    given = {"SWEEP_ID": "s1", "RUN_ID": "r1", "PROJECT": "p1", "ENTITY": "e1", "SWEEP_PARAM_PATH": str(parameters)}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    record_run(tracker_for(run_dir, tracker="wandb", wandb_entity="me", wandb_mode="offline"))
    (folder,) = folders(run_dir)
    run = records(folder, "run")[0]
    assert (run["run_id"], run["project"], run["entity"], run["sweep_id"]) == ("r1", "p1", "e1", "s1")
    assert not (run_dir / "wandb_run_id").exists()
    assert capsys.readouterr().err == ""  # W&B warns of a locked setting even if it is set to the same value


def test_online_without_a_key_does_not_prompt(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts: list[Any] = []
    monkeypatch.setattr(
        "wandb.sdk.lib.wbauth.authenticate._use_prompted_auth", lambda **details: prompts.append(details)
    )
    record_run(tracker_for(run_dir, tracker="wandb", wandb_mode="online"))
    assert prompts == []
    assert capsys.readouterr().err == (
        "warning: W&B cannot be used as configured (nobody is logged in: `wandb login`); this run is recorded offline\n"
    )
    assert len(folders(run_dir)) == 1


@pytest.mark.usefixtures("_logged_in")
@pytest.mark.parametrize(("mode", "num_folders"), [("offline", 1), ("disabled", 0)])
def test_the_mode_of_the_wandb_environment_is_used(
    mode: str, num_folders: int, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    record_run(tracker_for(run_dir, tracker="wandb"))
    assert len(folders(run_dir, "*run-*")) == num_folders
    assert capsys.readouterr().out.count("W&B") == num_folders


def test_a_failing_backend_costs_one_warning_and_stops_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr("accelerate.tracking.WandBTracker.log", broken)
    record_run(tracker_for(run_dir, tracker="wandb"))
    assert capsys.readouterr().err == "warning: wandb fails (Connection lost); metrics.jsonl is complete\n"
    assert steps_in(run_dir) == [1, 2, 3]


@pytest.mark.usefixtures("_logged_in")
@pytest.mark.parametrize("outage", [refusing, answering_500, hanging])
def test_an_outage_at_the_start_costs_a_warning_and_leaves_an_offline_run(
    outage: Callable[[], Any], run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    with outage() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        seconds = record_run(tracker_for(run_dir, tracker="wandb"))
    out, err = capfd.readouterr()
    assert seconds < 10  # 2 s as set above, and what the client needs for itself on a busy machine
    assert err.count("warning: ") == 1
    assert "warning: W&B cannot be used as configured (" in err
    assert steps_in(run_dir) == [1, 2, 3]
    (folder,) = folders(run_dir)
    assert out == f"this run is not completely on the W&B server; to upload it: wandb sync '{folder}'\n"
    assert curve(folder, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert len(list(folder.rglob("*.table.json"))) == 2


@pytest.mark.usefixtures("_logged_in")
def test_a_server_that_answers_nonsense_costs_a_warning(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering_nonsense() as url:  # which crashes the service of the client
        monkeypatch.setenv("WANDB_BASE_URL", url)
        seconds = record_run(tracker_for(run_dir, tracker="wandb"))
    out, err = capsys.readouterr()
    assert seconds < 15
    assert err.count("warning: ") == 1
    assert out.count("wandb sync --include-online") == 1
    assert steps_in(run_dir) == [1, 2, 3]


@pytest.mark.usefixtures("_logged_in")
def test_a_client_that_crashes_at_the_start_still_records_offline(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")

    with monkeypatch.context() as patch:
        patch.setattr("wandb.sdk.lib.wbauth.authenticate_session", dead)
        patch.setattr("wandb.teardown", dead)
        record_run(tracker_for(run_dir, tracker="wandb"))
    assert capsys.readouterr().err.count("warning: W&B cannot be used as configured (Connection lost)") == 1
    (folder,) = folders(run_dir)
    assert curve(folder, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


@pytest.mark.usefixtures("_logged_in")
def test_online_a_resumed_run_goes_on_where_it_was_and_loses_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        expected = log_twice_with_a_resume(run_dir)
    run_id = (run_dir / "wandb_run_id").read_text()
    assert [(row["step"], row["x"]) for row in server.history[run_id]] == expected
    assert capsys.readouterr().out == f"W&B: {server.url}/me/cifar10-accel/runs/{run_id}\n" * 2


@pytest.mark.usefixtures("_logged_in")
@pytest.mark.parametrize("has_tables", [False, True])
def test_a_server_that_dies_in_mid_run_costs_a_warning_and_a_bounded_time(
    has_tables: bool, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = tracker_for(run_dir, tracker="wandb")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        tracker.__enter__()
        tracker.log({"x": 1.0}, step=1, epoch=0.5)
    started = time.monotonic()
    for step in range(2, 100):
        tracker.log({"x": 1 / step}, step=step, epoch=step / 2)
    for name in ("misclassified", "correct") if has_tables else ():
        tracker.log_table(name, COLUMNS, ROWS)
    assert time.monotonic() - started < 5  # training does not wait for the server
    tracker.finish(0)
    assert time.monotonic() - started < 15  # the end waits 2 s for it
    out, err = capsys.readouterr()
    assert err.count("warning: ") == 1
    assert steps_in(run_dir) == list(range(1, 100))
    (folder,) = folders(run_dir, "run-*")
    assert f"wandb sync --include-online '{folder}'\n" in out
    assert [step for step, _ in curve(folder, "x")] == list(range(1, 100))
    assert len(records(folder, "artifact")) == 2 * has_tables  # from where they can be uploaded
