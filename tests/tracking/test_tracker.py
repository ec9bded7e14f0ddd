"""Tracking: metrics.jsonl with or without a backend, TensorBoard, Trackio. (W&B: test_wandb.py.)"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tracked_run import record_run, steps_in, tracker_for
from training_commands import run_python


def test_without_a_backend_there_is_only_metrics_jsonl(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    record_run(tracker_for(run_dir, tracker="none"))
    record_run(tracker_for(run_dir, tracker="none", resume_step=2), start_step=2)
    assert steps_in(run_dir) == [1, 2, 3, 4, 5]
    assert [path.name for path in run_dir.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("tracker", ["none", "wandb", "trackio", "tensorboard"])
def test_only_the_main_process_does_anything(tmp_path: Path, tracker: str) -> None:
    other_rank = SimpleNamespace(is_main_process=False, trackers=[])
    record_run(tracker_for(tmp_path / "run", accelerator=other_rank, tracker=tracker))
    assert list((tmp_path / "run").iterdir()) == []
    assert other_rank.trackers == []


def test_importing_the_tracker_imports_no_backend_and_metrics_jsonl_no_torch(tmp_path: Path) -> None:
    code = """
import sys
import cifar10_accel.runs.metrics_jsonl
print([name for name in ("torch", "accelerate", "numpy") if name in sys.modules])
import cifar10_accel.tracking.tracker
print([name for name in ("wandb", "trackio", "tensorboard", "torch.utils.tensorboard") if name in sys.modules])
"""
    assert run_python("-c", code, cwd=tmp_path).stdout.split("\n") == ["[]", "[]", ""]


@pytest.mark.parametrize("package", ["wandb", "trackio", "tensorboard"])
def test_a_package_that_is_not_installed_costs_one_warning(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (package, "torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it is then an ImportError
    record_run(tracker_for(tmp_path / "run", tracker=package))
    assert capsys.readouterr().err == (
        f"warning: {package} fails (not installed: pip install {package}); metrics.jsonl is complete\n"
    )
    assert steps_in(tmp_path / "run") == [1, 2, 3]
    assert Accelerator(cpu=True).trackers == []


class NeedsAnother(GeneralTracker):
    """A tracker whose package is missing, as Accelerate's own for MLflow without it."""

    name, requires_logging_directory, tracker = "another", False, None

    def start(self) -> None:
        raise ModuleNotFoundError("No module named 'another_package'", name="another_package")


def test_the_missing_package_of_an_imported_tracker_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_run(tracker_for(tmp_path / "run", tracker=f"{__name__}:NeedsAnother"))
    assert "fails (not installed: pip install another_package); metrics.jsonl is complete" in capsys.readouterr().err
    assert steps_in(tmp_path / "run") == [1, 2, 3]


def test_a_signal_is_not_taken_for_a_failure_of_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cifar10_accel.tracking.tracker.TensorBoardBackend.__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_run(tracker_for(tmp_path / "run", tracker="tensorboard"))


def test_tensorboard_gets_curves_and_images_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "run"
    record_run(tracker_for(run_dir, tracker="tensorboard"))
    record_run(tracker_for(run_dir, tracker="tensorboard", resume_step=2), start_step=2)
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4, 5)]
    assert [event.step for event in events.Images("misclassified")] == [5]
    assert "max_lr: 0.4" in next(run_dir.rglob("hparams.yml")).read_text()


def test_trackio_gets_the_metrics_and_a_resumed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    code = """
from pathlib import Path
from tracked_run import record_run, tracker_for
for step in (0, 3):
    record_run(tracker_for(Path("run"), tracker="trackio", resume_step=step), start_step=step)
"""  # in a process of its own: trackio reads the name of its folder when it is imported
    done = run_python("-c", code, cwd=tmp_path, PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 0
    assert "warning: " not in done.stderr
    query = ["--project", "cifar10-accel", "--run", "first", "--metric", "train/loss", "--json"]
    command = [sys.executable, "-m", "trackio.cli", "get", "metric", *query]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = [(value["step"], value["value"]) for value in json.loads(output)["values"]]
    assert values == [(step, 1 / step) for step in range(1, 7)]
