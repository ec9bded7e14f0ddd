"""The report of a real, tiny run: at its end, again later, and of what is left of it."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import TINY

from cifar10_accel.cli import main
from cifar10_accel.predictions import Predictions
from cifar10_accel.settings import Settings
from cifar10_accel.train import train


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(Settings(**TINY, run_dir=folder))
    return folder


def report(*args: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, args)])


def test_a_run_leaves_its_report(run_folder: Path) -> None:
    """The same page that the command writes afterwards, but for what is only known then."""
    at_the_end = (run_folder / "report.html").read_text()
    accuracy = Predictions.load(run_folder / "predictions.npz").accuracy()
    assert f"{accuracy:.2%}" in at_the_end
    assert "SYNTHETIC" in at_the_end
    assert len(Predictions.load(run_folder / "val_predictions.npz").label) == TINY["val_size"]
    done = report(run_folder)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(run_folder / "report.html")
    later = (run_folder / "report.html").read_text()
    assert abs(len(later) - len(at_the_end)) < 3000
    assert "with temperature" in later


@pytest.mark.parametrize(
    ("broken", "content", "said"),
    [
        ("predictions.npz", b"not an archive", "predictions.npz"),
        ("summary.json", b'{"test/acc', "summary.json is missing or broken"),
        ("metrics.jsonl", b'{"step": 1, "epoch": 0.1, "train/loss": null}\n{"step": 2, "ep', ""),
        ("status.json", b'{"state": "preempted", "reason": "stopped after update 7"}', "stopped after update 7"),
    ],
)
def test_what_is_broken_is_said(broken: str, content: bytes, said: str, run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run_folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(content if path.name == broken else path.read_bytes())
    done = report(copy)
    assert done.exit_code == 0, done.output
    assert said in (copy / "report.html").read_text()


def test_what_cannot_be_reported_is_one_line(tmp_path: Path) -> None:
    done = report(tmp_path)
    assert done.exit_code == 3
    assert "not a run folder" in done.stderr
    assert report().exit_code == 2
    assert report(tmp_path, "--wandb", "me/p").exit_code == 2
    assert report(tmp_path, "--sweep", "x").exit_code == 2
