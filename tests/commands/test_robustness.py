"""Corrupted images, and the evaluation of a tiny run on them: numbers, files and report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.data.corruptions import CORRUPTIONS, corrupt
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.report.robustness import robustness_context
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.settings import Settings


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


def test_numbers_that_are_broken_are_left_out_of_the_page() -> None:
    for broken in ({}, {"corruptions": {}}, {"corruptions": {"a": {"error": [float("nan")]}}}, {"corruptions": 3}):
        assert robustness_context(broken, None) is None
