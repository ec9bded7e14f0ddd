"""Run folders written before models, recipes and weights were renamed: read, evaluated, resumed.

Both are trainings of a few steps on synthetic images. resnet24-finished: model custom_resnet, averaged weights, a
hold-out. speed94-stopped: model speednet, Muon, a whitening stem; stopped by `--max-steps 5` at step 5 of 12.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar10_accel.commands.evaluate import evaluate
from cifar10_accel.commands.report import report
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.models.registry import build_model
from cifar10_accel.runs import checkpoint, legacy
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.runs.saved_run import SavedRun
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

EARLIER_VERSION = Path(__file__).parent / "earlier_version"
FINISHED, STOPPED = "resnet24-finished", "speed94-stopped"
FLAGS: dict[str, Any] = {
    "tracker": "none",
    "num_threads": 1,
    "synthetic_size": 200,
    "dataset": "synthetic",
    "width": 4,
    "batch_size": 50,
    "log_every": 1,
    "eval_batch_size": 100,
    "precision": "no",
    "peak_epoch": 1,
}
FINISHED_FLAGS = FLAGS | {"recipe": "resnet9", "epochs": 2, "val_size": 20, "ema_decay": 0.9, "tta": "flip"}
STOPPED_FLAGS = FLAGS | {"recipe": "speed94", "epochs": 3, "compile": False}


@pytest.fixture(params=[FINISHED, STOPPED])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of the run folders."""
    return copy_run(request.param, tmp_path)


def copy_run(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER_VERSION / name, tmp_path / "runs" / name))


def read_summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def test_everything_in_the_folder_is_read(folder: Path) -> None:
    run = SavedRun.load(folder)
    assert run.missing == ()
    assert run.settings.model == {FINISHED: "resnet9", STOPPED: "airbench94"}[folder.name]
    assert run.settings.recipe == {FINISHED: "resnet9", STOPPED: "speed94"}[folder.name]
    assert run.test is not None
    assert run.test.accuracy() == pytest.approx(run.summary["test/accuracy"])
    assert (run.val is not None) == (folder.name == FINISHED)
    assert run.dynamics is not None
    assert run.dynamics.loss.shape == {FINISHED: (2, 180), STOPPED: (1, 200)}[folder.name]
    assert np.array_equal(run.dynamics.label, run.dataset().train.labels)
    assert run.metrics[-1]["test/accuracy"] == run.summary["test/accuracy"]


def test_a_report_is_written(folder: Path) -> None:
    page = report(folder, grad_cam=True).read_text()
    assert f"{read_summary(folder)['test/accuracy']:.2%}" in page
    assert "missing or damaged" not in page


def test_evaluation_gives_the_same_accuracy(folder: Path) -> None:
    evaluation, settings = evaluate(folder, overrides={})
    one_image = 1.01 / len(evaluation.test.label)
    summary = read_summary(folder)
    measured = evaluation.metrics()
    evaluated = {name for name in summary if name.startswith(("test/", "val/"))} - {"val/best_accuracy"}
    assert evaluated == measured.keys()
    assert measured["test/accuracy"] == pytest.approx(summary["test/accuracy"], abs=one_image)
    assert measured["test/loss"] == pytest.approx(summary["test/loss"], rel=1e-3)
    assert settings.run_name == folder.name


def test_the_weights_are_those_of_the_recorded_predictions(folder: Path) -> None:
    run = SavedRun.load(folder)
    assert run.test is not None
    images = torch.from_numpy(run.dataset().test.images)
    probabilities = Classifier.from_run(folder).probabilities(images).numpy()
    assert probabilities == pytest.approx(run.test.probabilities, abs=1e-3)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_run(FINISHED, tmp_path)
    before = (folder / "metrics.jsonl").read_bytes()
    summary = fit(Settings(**FINISHED_FLAGS, run_dir=folder)).summary
    assert "is finished: nothing to train" in capsys.readouterr().out
    assert summary == read_summary(folder)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_stopped_run_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_run(STOPPED, tmp_path)
    summary = fit(Settings(**STOPPED_FLAGS, run_name=STOPPED)).summary  # the tests run in tmp_path
    assert "resuming from runs/speed94-stopped/checkpoints/step-000005" in capsys.readouterr().out
    assert summary["step"] == 12
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    assert newest.name == "step-000012"
    assert json.loads((newest / "manifest.json").read_text())["format_version"] == checkpoint.FORMAT_VERSION
    assert sorted({line["step"] for line in read_metrics(folder / "metrics.jsonl")}) == list(range(1, 13))
    saved = SavedRun.load(folder)
    assert saved.missing == ()
    assert saved.dynamics is not None
    assert len(saved.dynamics.loss) == 3


def test_other_settings_are_still_refused(tmp_path: Path) -> None:
    folder = copy_run(STOPPED, tmp_path)
    with pytest.raises(SettingsError, match=r"other settings \(model airbench94 -> resnet9\)"):
        fit(Settings(**STOPPED_FLAGS | {"model": "resnet9"}, run_dir=folder))


@pytest.mark.parametrize("kept", ["resnet18", "depthwise_dilated", "none"])
def test_only_renamed_values_of_the_two_settings_are_translated(kept: str) -> None:
    values = {"model": "speednet_deep", "recipe": "original24", "run_name": "speednet", "width": 4, "run_dir": None}
    translated = {"model": "airbench96", "recipe": "resnet9_original"}
    source = Path("settings.yaml")
    assert legacy.translate_settings(values, source=source) == values | translated
    assert legacy.translate_settings({"model": kept}, source=source) == {"model": kept}


def test_augmentations_of_the_first_version_have_its_order() -> None:
    values = {"augment": ["cutout", "crop"]}
    assert legacy.translate_settings(values, source=Path("s"))["augment"] == ["crop", "cutout"]
    now = values | {"settings_version": 2}
    assert legacy.translate_settings(now, source=Path("s")) == values


def test_neither_recipe_nor_environment_changes_what_a_run_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that its version did not have has the default, whatever the recipe of today says."""
    folder = copy_run(STOPPED, tmp_path)
    path = folder / "settings.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("norm_gain:", "max_lr:"))]
    path.write_text("\n".join([*lines, "recipe_of_mine: 3"]).replace("recipe: speed94", "recipe: resnet9_plus"))
    monkeypatch.setenv("CIFAR10_ACCEL_MAX_LR", "0.7")
    settings = RunFolder(folder).settings()
    assert settings.norm_gain == 1.0
    assert settings.max_lr == 0.4


def test_a_settings_file_of_this_version_with_an_unknown_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(Settings().to_yaml() + "mystery: 3\n")
    with pytest.raises(InputError, match=r"settings.yaml: mystery: no such setting"):
        RunFolder(tmp_path).settings()


def test_keys_of_the_training_state_are_translated() -> None:
    before = {"since_line": [1], "since_epoch": [2], "recorded": {"loss": 3}, "optimizer": {"since_line": 4}}
    after = {"metrics_since_log": [1], "epoch_metrics": [2], "dynamics": {"loss": 3}, "optimizer": {"since_line": 4}}
    assert legacy.translate_training(before) == after
    assert legacy.translate_training({"seconds": 1.5}) == {"dynamics": None, "seconds": 1.5}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("prep.0.weight", "stem.0.weight"),
        ("stem.0.bias", "stem.0.bias"),
        ("layer1.1.branch.0.weight", "backbone.layer1.1.branch.0.weight"),
        ("stage2.halve.0.weight", "backbone.stage2.halve.0.weight"),
        ("head.weight", "head.weight"),
        ("n_averaged", "n_averaged"),
        ("module.prep.0.weight", "module.stem.0.weight"),
        ("module.layer2.0.weight", "module.backbone.layer2.0.weight"),
        ("module.head.weight", "module.head.weight"),
    ],
)
def test_names_of_weights_are_translated(before: str, after: str) -> None:
    assert legacy.translate_weight_name(before) == after


def test_translated_weights_are_those_of_the_present_model(folder: Path) -> None:
    saved = checkpoint.load(next((folder / "checkpoints").iterdir()))
    model = build_model(RunFolder(folder).settings(), num_classes=10)
    assert saved.model.keys() == saved.evaluated.keys() == model.state_dict().keys()
