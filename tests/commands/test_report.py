"""Pages of a real, tiny run: at its end, written again later, of damaged folders, and compared with other runs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.commands.statistics import mcnemar
from cifar10_accel.formatting import format_p_value
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.run_folder import RunFolder


def report(*args: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, args)])


def test_a_run_leaves_its_report(run_folder: Path) -> None:
    """Nearly the same page that the command writes afterwards."""
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
    ("broken", "content", "message"),
    [
        ("predictions.npz", b"not an archive", "predictions.npz"),
        ("summary.json", b'{"test/acc', "summary.json is missing or damaged"),
        ("metrics.jsonl", b'{"step": 1, "epoch": 0.1, "train/loss": null}\n{"step": 2, "ep', ""),
        ("status.json", b'{"state": "preempted", "reason": "stopped after step 7"}', "stopped after step 7"),
    ],
)
def test_the_page_lists_what_is_broken(
    broken: str, content: bytes, message: str, run_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run_folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(content if path.name == broken else path.read_bytes())
    done = report(copy)
    assert done.exit_code == 0, done.output
    assert message in (copy / "report.html").read_text()


def test_pages_that_cannot_be_written_are_one_line(run_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    (copy / "report.html").unlink()
    (copy / "report.html").mkdir()
    done = report(copy)
    assert done.exit_code == 2
    assert "report.html: cannot be written" in done.stderr
    assert "make it writable" in done.stderr
    done = compare(run_folder, run_folder, "--out", copy / "settings.yaml" / "x.html")
    assert done.exit_code == 2
    assert re.fullmatch(r"error: out: \S+ cannot be written \(.+\); give another --out\n", done.stderr)


def test_a_folder_without_a_run_is_a_one_line_error(tmp_path: Path) -> None:
    done = report(tmp_path)
    assert done.exit_code == 3
    assert "not a run folder" in done.stderr
    assert report().exit_code == 2
    assert report(tmp_path, "--wandb", "me/p").exit_code == 2
    assert report(tmp_path, "--sweep", "x").exit_code == 2


def other_run(folder: Path, *, target: Path, setting: tuple[str, str], probabilities: np.ndarray | None = None) -> Path:
    """Copy the run with another setting and other predictions."""
    shutil.copytree(folder, target)
    text = (target / "settings.yaml").read_text()
    assert setting[0] in text
    (target / "settings.yaml").write_text(text.replace(*setting))
    if probabilities is not None:
        made = Predictions.load(folder / "predictions.npz")
        Predictions(made.index, made.label, probabilities, made.loss).save(target / "predictions.npz")
    return target


def compare(*args: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, args)], env={"COLUMNS": "200"})


def test_runs_are_compared(run_folder: Path, tmp_path: Path) -> None:
    """Against a model without mistakes: nothing broken, every mistake fixed."""
    made = Predictions.load(run_folder / "predictions.npz")
    perfect = np.eye(made.probabilities.shape[1], dtype=np.float32)[made.label]
    second = other_run(run_folder, target=tmp_path / "b", setting=("max_lr: ", "max_lr: 1"), probabilities=perfect)
    third = other_run(run_folder, target=tmp_path / "c", setting=("seed: 0", "seed: 1"))
    done = compare(run_folder, second, third, "--out", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    mistakes = int((~made.correct).sum())
    line = f"B fixes {mistakes} images and breaks 0; McNemar's exact p = {mcnemar(mistakes, 0):.3g}"
    assert line in done.stdout
    assert "max_lr" in done.stdout
    assert f"A, C differ only in seed: mean {made.accuracy():.2%}, sd 0.00%" in done.stdout
    page = (tmp_path / "page.html").read_text()
    assert page.count('<span class="tile"') == mistakes
    assert "SYNTHETIC" in page


def test_drawn_images_of_two_seeds_are_not_the_same_images(run_folder: Path, tmp_path: Path) -> None:
    done = compare(run_folder, other_run(run_folder, target=tmp_path / "b", setting=("seed: 0", "seed: 1")))
    assert done.exit_code == 0, done.output
    assert "Not compared image by image" in done.stdout
    assert "McNemar" not in (tmp_path / "compare.html").read_text()


def test_runs_that_cannot_be_compared_are_a_one_line_error(run_folder: Path, tmp_path: Path) -> None:
    made = Predictions.load(run_folder / "predictions.npz")
    other = other_run(run_folder, target=tmp_path / "b", setting=("seed: 0", "seed: 1"))
    Predictions(made.index, made.prediction, made.probabilities, made.loss).save(other / "predictions.npz")
    without = other_run(run_folder, target=tmp_path / "c", setting=("seed: 0", "seed: 1"))
    (without / "predictions.npz").unlink()
    renamed = other_run(run_folder, target=tmp_path / "d", setting=("seed: 0", "seed: 1"))
    first = RunFolder(run_folder).read_json("environment.json")["classes"][0]
    text = (renamed / "environment.json").read_text()
    (renamed / "environment.json").write_text(text.replace(f'"{first}"', '"zeppelin"'))
    fewer = other_run(run_folder, target=tmp_path / "e", setting=("seed: 0", "seed: 1"))
    Predictions(made.index[:-1], made.label[:-1], made.probabilities[:-1], made.loss[:-1]).save(
        fewer / "predictions.npz"
    )
    own = {}
    for name in "fg":
        own[name] = other_run(run_folder, target=tmp_path / name, setting=("dataset: synthetic", "dataset: folder"))
    text = (own["g"] / "environment.json").read_text()
    digest = json.loads(text)["test_images"]
    (own["g"] / "environment.json").write_text(text.replace(digest, "0" * 12))
    for runs, code, message in [
        ((run_folder,), 2, "two run folders"),
        ((own["f"], own["g"]), 3, "(the images of the same classes are others)"),
        ((run_folder, tmp_path), 3, "not a run folder"),
        ((run_folder, other), 3, "tested on another set than"),
        ((run_folder, other), 3, "(the images have other classes)"),
        ((run_folder, renamed), 3, f"(classes: {first} and zeppelin)"),
        ((run_folder, fewer), 3, "(images: 80 and 79)"),
        ((run_folder, without), 3, "no usable predictions.npz"),
    ]:
        done = compare(*runs)
        assert done.exit_code == code, done.output
        assert message in done.stderr
        assert code == 2 or done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "< 1e-300"), (5e-324, "< 1e-300"), (1e-299, "1e-299"), (0.03141, "0.0314"), (1.0, "1")]
)
def test_a_p_value_is_never_0(p: float, text: str) -> None:
    assert format_p_value(p) == text


def test_models_that_differ_in_every_image_are_compared(run_folder: Path, tmp_path: Path) -> None:
    """The p-value of 4,000 images that are all fixed is too small for a float, in the terminal and on the page."""
    label = np.zeros(4000, dtype=np.int64)
    folders = []
    for name, predicted in (("a", 1), ("b", 0)):
        folder = other_run(run_folder, target=tmp_path / name, setting=("seed: 0", "seed: 0"))
        probabilities = np.eye(10, dtype=np.float32)[np.full(4000, predicted)]
        Predictions(np.arange(4000), label, probabilities, np.ones(4000, dtype=np.float32)).save(
            folder / "predictions.npz"
        )
        folders.append(folder)
    assert mcnemar(4000, 0) == 0.0
    done = compare(*folders, "--out", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert "McNemar's exact p < 1e-300" in done.stdout
    assert "<dd>&lt; 1e-300<small>significant at 0.05" in (tmp_path / "page.html").read_text()


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)
