"""The example package with a model, an augmentation, a data set and a callback, used from outside the package."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_commands import CHILD_ENVIRONMENT, REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "own_model"
FEW = {
    "CIFAR10_ACCEL_NUM_THREADS": "1",
    "CIFAR10_ACCEL_TRACKER": "none",
    "CIFAR10_ACCEL_CHECKPOINT_EVERY": "0.5",
}
COMMANDS = re.findall(r"^(?:FLAGS=.*|cifar10-accel .*)$", (EXAMPLE / "README.md").read_text(), flags=re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, which no import path leads to but the current folder."""
    copy = tmp_path_factory.mktemp("example") / "own_model"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    run(copy, "train")
    return copy


def run(folder: Path, command: str, *more: str) -> str:
    """Run the README's command line that begins with this command; return what it prints."""
    flags, *lines = COMMANDS
    (line,) = [line for line in lines if line.startswith(f"cifar10-accel {command} ")]
    line = line.replace("$FLAGS", flags.removeprefix('FLAGS="').removesuffix('"'))
    _, *arguments = shlex.split(line)
    argv = [sys.executable, "-m", "cifar10_accel", *arguments, *more]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | CHILD_ENVIRONMENT | FEW
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_learns_and_logs_its_number(folder: Path) -> None:
    lines = (folder / "runs" / "own" / "metrics.jsonl").read_text()
    assert lines.count("weights/norm") == 3
    assert '"test/accuracy"' in (folder / "runs" / "own" / "summary.json").read_text()
    assert "own.models:Tiny" in (folder / "runs" / "own" / "settings.yaml").read_text()


def test_report_and_prediction(folder: Path) -> None:
    assert run(folder, "report").strip() == "runs/own/report.html"
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(folder / "image.png")
    environment = os.environ | CHILD_ENVIRONMENT
    argv = [sys.executable, "-m", "cifar10_accel", "predict", "runs/own", "image.png", "--format", "csv"]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert {row["class"] for row in csv.DictReader(done.stdout.splitlines())} <= {
        "horizontal",
        "vertical",
        "diagonal",
        "dots",
    }


def test_export_to_onnx_runs_in_onnxruntime(folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    (folder / "own.onnx").unlink(missing_ok=True)
    assert "class equal on 100 of 100 test images" in run(folder, "export")
    session = onnxruntime.InferenceSession(folder / "own.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.zeros((5, 3, 16, 16), np.float32)})
    assert logits.shape == (5, 4)


def test_the_same_images_and_gradients_on_two_processes(folder: Path) -> None:
    assert "equal" in run(folder, "verify-parallel")


def test_killed_and_resumed_it_ends_with_the_same_bits(folder: Path) -> None:
    printed = run(folder, "verify-resume")
    assert printed.count("the same bits") == 4, printed


def test_a_sweep_over_an_argument_of_the_model(folder: Path) -> None:
    run(folder, "sweep run")
    with (folder / "runs" / "sweeps" / "own-model" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert {row["model_args.depth"] for row in rows} <= {"2", "3"}
