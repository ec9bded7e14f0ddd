"""Corrupted images, and the evaluation of a tiny run on them: numbers, files and report."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.commands import robustness as robustness_command
from cifar10_accel.data.corruptions import CORRUPTIONS, corrupt
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.report.robustness import robustness_context
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["robustness", *map(str, args)], env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_its_seed_and_grows_with_severity(name: str) -> None:
    images = load_dataset(Settings(**TINY), seed=0).test.images
    before, state = images.copy(), torch.get_rng_state()
    strengths = CORRUPTIONS[name].strengths
    assert len(strengths) == 5
    spoiled = [corrupt(images, name, strength, seed=1) for strength in strengths]
    distances = [np.abs(result.astype(int) - images).mean() for result in spoiled]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert spoiled[0].shape == images.shape
    assert np.array_equal(corrupt(images, name, strengths[0], seed=1), spoiled[0])
    assert np.array_equal(corrupt(images[:30], name, strengths[0], seed=1), spoiled[0][:30]) or "noise" in name
    assert np.array_equal(corrupt(images, name, strengths[0], seed=2), spoiled[0]) == ("noise" not in name)
    assert np.array_equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_is_tested_and_its_report_shows_it(run_folder: Path) -> None:
    done = call(run_folder)
    assert done.exit_code == 0, done.output
    result = json.loads((run_folder / "robustness.json").read_text())
    clean = Predictions.load(run_folder / "predictions.npz")
    assert result["clean"]["error"] == pytest.approx(1 - clean.accuracy())
    assert (result["num_images"], result["step"], result["dataset"]) == (80, 18, "synthetic")
    errors = [error for kind in result["corruptions"].values() for error in kind["error"]]
    assert len(errors) == 30
    assert result["mean_corruption_error"] == pytest.approx(np.mean(errors))
    assert np.mean(result["class_mean_corruption_error"]) == pytest.approx(np.mean(errors))  # classes of equal size
    for text in (f"mean corruption error {np.mean(errors):.2%}", "gaussian noise", "SYNTHETIC", "worst at"):
        assert text in done.stdout, text
    page = (run_folder / "report.html").read_text()
    assert 'id="robustness"' in page
    assert page.count('class="tile of-corruption"') == 30
    assert f"{np.mean(errors):.2%}" in page

    again = call(run_folder / "checkpoints" / "step-000018", "--images=20", "--eval-batch-size=7")
    assert again.exit_code == 0, again.output
    assert json.loads((run_folder / "robustness.json").read_text())["num_images"] == 20


def test_what_cannot_be_tested_is_one_line(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    assert "no checkpoint" in done.stderr


def test_a_folder_that_cannot_be_written_costs_no_time(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    (copy / "robustness.png").unlink(missing_ok=True)
    (copy / "robustness.png").mkdir()
    monkeypatch.setattr(robustness_command, "_errors", lambda *_: pytest.fail("evaluated"))
    done = call(copy)
    assert done.exit_code == 2
    assert re.fullmatch(r"error: \S+robustness\.png: cannot be written \(.+\); make it writable\n", done.stderr)


def test_numbers_that_are_broken_are_left_out_of_the_page() -> None:
    for broken in ({}, {"corruptions": {}}, {"corruptions": {"a": {"error": [float("nan")]}}}, {"corruptions": 3}):
        assert robustness_context(broken, None) is None


@pytest.mark.parametrize(("size", "channels"), [(64, 3), (48, 1), (256, 1)])
def test_corruptions_grow_with_the_size_of_the_images(size: int, channels: int) -> None:
    """A picture drawn at any size is changed as much as at 32 pixels; `pixelate` keeps its share of the pixels."""
    small, large = (smooth_pictures(side, channels) for side in (32, size))
    for name in ("gaussian blur", "brightness", "contrast", "gaussian noise"):
        for strength in CORRUPTIONS[name].strengths[1::2]:
            distances = [
                np.abs(corrupt(images, name, strength, seed=1).astype(float) - images).mean()
                for images in (small, large)
            ]
            assert distances[1] == pytest.approx(distances[0], rel=0.35), (name, strength)
    for strength in CORRUPTIONS["pixelate"].strengths:
        corrupted = corrupt(large, "pixelate", strength, seed=1)
        changes = (corrupted[:, :, 1:] != corrupted[:, :, :-1]).any(axis=(0, 1, 3))
        assert changes.sum() + 1 == strength * size / 32
    assert corrupt(large, "jpeg", 80, seed=1).shape == large.shape


def test_the_smallest_images_can_be_corrupted() -> None:
    images = smooth_pictures(8, 1)
    for name, kind in CORRUPTIONS.items():
        for strength in kind.strengths:
            assert corrupt(images, name, strength, seed=0).shape == images.shape


def smooth_pictures(side: int, channels: int) -> np.ndarray:
    """Return four pictures (4, side, side, channels) of waves, the same at any size."""
    line = (np.arange(side) + 0.5) / side
    waves = [np.sin(9 * np.pi * line[:, None] + k) * np.cos(7 * np.pi * line[None, :]) for k in range(4)]
    return np.repeat((127 + 90 * np.stack(waves)).astype(np.uint8)[..., None], channels, axis=3)


def test_a_class_without_images_has_no_error(tmp_path: Path) -> None:
    """Grayscale images of another size in three classes, of which one has no test images."""
    for split, names in (("train", "abc"), ("test", "ab")):
        for number, name in enumerate(names * 8):
            path = tmp_path / "data" / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 30 + 30 * ord(name) % 90).save(path)
    values = TINY | {"dataset": "folder", "data_dir": tmp_path / "data", "image_size": 40, "val_size": 0}
    fit(Settings(**values | {"batch_size": 8, "epochs": 1, "peak_epoch": 0.5}, run_dir=tmp_path / "run"))
    done = call(tmp_path / "run")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "run" / "robustness.json").read_text())
    assert result["class_images"] == [8, 8, 0]
    assert [cell.strip() for cell in done.stdout.splitlines()[-3].split("│")[1:-1]] == ["c", "-", "-", "no images"]
    assert "nan" not in done.stdout
    assert Image.open(tmp_path / "run" / "robustness.png").size == (5 * 40, 6 * 40)
