"""`evaluate` of several runs: the mean of their probabilities, each member, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy import stats
from training_commands import TINY, run_python

from cifar10_accel import Settings, fit
from cifar10_accel.cli import main
from cifar10_accel.commands.ensemble import mean_predictions
from cifar10_accel.runs.predictions import Predictions

RUNS = {"one": {}, "two": {"width": 6, "max_lr": 0.05}, "tta": {"tta": "flip"}, "other": {"seed": 3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small runs; all but one have the same test images."""
    folder = tmp_path_factory.mktemp("ensemble")
    for name, changes in RUNS.items():
        fit(Settings(**(TINY | changes | {"run_dir": folder / name})))
    return folder


def evaluate(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["evaluate", *(str(folder / arg) if arg[0] != "-" else arg for arg in args)])


def test_the_ensemble_has_the_mean_of_the_probabilities(folder: Path) -> None:
    """Computed here from the files that the runs have left."""
    names = ("one", "two", "tta/checkpoints/step-000018")
    found = json.loads(evaluate(folder, *names, "--json").stdout)
    files = [Predictions.load(folder / name.split("/")[0] / "predictions.npz") for name in names]
    mean = sum(file.probabilities.astype(np.float64) for file in files) / 3
    assert found["test/accuracy"] == (mean.argmax(axis=1) == files[0].label).mean()
    loss = -np.log(mean[np.arange(len(mean)), files[0].label]).mean()
    assert found["test/loss"] == pytest.approx(loss, rel=1e-6)
    assert [member["test/accuracy"] for member in found["members"]] == [file.accuracy() for file in files]
    assert [member["run"] for member in found["members"]] == [str(folder / name) for name in names]
    assert loss < np.mean([member["test/loss"] for member in found["members"]])


def test_tta_needs_all_members(folder: Path) -> None:
    some, every = evaluate(folder, "one", "tta"), evaluate(folder, "one", "tta", "--tta=flip")
    assert "give --tta flip" in some.stdout
    assert "test/accuracy_tta" not in json.loads(evaluate(folder, "one", "tta", "--json").stdout)
    assert "with TTA" in every.stdout.splitlines()[-1]
    metrics = json.loads(evaluate(folder, "one", "tta", "--tta=flip", "--json").stdout)
    assert 0 <= metrics["test/accuracy_tta"] <= 1
    summary = json.loads((folder / "tta" / "summary.json").read_text())
    assert metrics["members"][1]["test/accuracy_tta"] == summary["test/accuracy_tta"]


def test_the_table_fits_80_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = evaluate(folder, "one", "two", "--tta=flip")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    for row in ("mean of the runs", "ensemble"):
        assert row in done.stdout


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("one", "other"), "tested on other images"),
        (("one", "two", "one"), "given twice"),
        (("one", "one/../one"), "given twice"),
        (("one", "nothing"), "no checkpoint there"),
        (("one", "two", "--data-dir=/nowhere", "--tta=nothing"), "tta"),
    ],
)
def test_refused_in_one_line(args: tuple[str, ...], hint: str, folder: Path) -> None:
    done = evaluate(folder, *args)
    assert done.exit_code in (2, 3)
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error:", "Error:"))]
    assert len(errors) == 1
    assert hint in errors[0]
    assert "Traceback" not in done.output


def test_another_data_set_is_refused_before_anything_is_evaluated(folder: Path, tmp_path: Path) -> None:
    """By the settings alone: neither data set needs to be here."""
    other = tmp_path / "other"
    (other / "checkpoints" / "step-000018").mkdir(parents=True)
    text = (folder / "one" / "settings.yaml").read_text()
    (other / "settings.yaml").write_text(text.replace("dataset: synthetic", "dataset: cifar10"))
    done = evaluate(folder, "one", str(other / "checkpoints" / "step-000018"))
    assert done.exit_code == 3
    assert "CIFAR-10" in done.stderr
    assert "runs of one data set" in done.stderr


def test_one_run_is_evaluated_as_before(folder: Path) -> None:
    assert "members" not in json.loads(evaluate(folder, "one", "--json").stdout)
    assert "most often taken for" in evaluate(folder, "one").stdout
    assert evaluate(folder).exit_code == 2


@pytest.mark.parametrize("num_processes", [2])
def test_on_several_processes(num_processes: int, folder: Path) -> None:
    args = ("-m", "cifar10_accel", "evaluate", "one", "two", "--json")
    done = run_python(*args, cwd=folder, num_processes=num_processes)
    assert done.returncode == 0, done.stderr
    alone = json.loads(evaluate(folder, "one", "two", "--json").stdout)
    assert json.loads(done.stdout)["test/accuracy"] == alone["test/accuracy"]


def test_models_that_agree_and_models_that_do_not() -> None:
    label, index = np.array([0, 1, 1]), np.arange(3)
    one, two = (np.array(rows, np.float32) for rows in ([[0.6, 0.4]] * 3, [[0.1, 0.9]] * 3))
    zero = np.zeros(3, np.float32)
    mean = mean_predictions([Predictions(index, label, one, zero), Predictions(index, label, two, zero)])
    np.testing.assert_allclose(mean.probabilities, [[0.35, 0.65]] * 3)
    np.testing.assert_allclose(mean.loss, -np.log([0.35, 0.65, 0.65]), rtol=1e-6)
    sure = Predictions(index, label, np.array([[0, 1]] * 3, np.float32), zero)
    assert np.isfinite(mean_predictions([sure, sure]).loss).all()


@pytest.mark.parametrize(("correct", "num"), [(0, 10), (10, 10), (9127, 10_000), (1, 3), (50, 100)])
def test_the_interval_is_wilsons(correct: int, num: int) -> None:
    label = np.zeros(num, np.int64)
    probabilities = np.zeros((num, 2), np.float32)
    probabilities[:correct, 0], probabilities[correct:, 1] = 1, 1
    found = Predictions(np.arange(num), label, probabilities, np.zeros(num, np.float32)).accuracy_interval()
    expected = stats.binomtest(correct, num).proportion_ci(method="wilson")
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=1e-12)
