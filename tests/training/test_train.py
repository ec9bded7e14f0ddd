"""Complete runs in this process: their folder, resuming, settings that must not change the weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training_commands import TINY
from trainings import status_of

from cifar10_accel import train as train_module
from cifar10_accel.commands.lr_range import lr_range
from cifar10_accel.errors import InputError, NonFiniteError, OutOfResourcesError, SettingsError
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training import evaluation
from cifar10_accel.training import step as step_module
from cifar10_accel.training.optimization.lr_schedule import LrRange

STEPS = 18  # 360 training images, batches of 60, 3 epochs


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    """A tiny run in `folder`; its summary."""
    return fit(Settings(**(TINY | {"run_dir": folder} | changes))).summary


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in the newest checkpoint of a run folder."""
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    return checkpoint.load(newest).model


class WithoutNorms(nn.Sequential):
    """A model without batch norm, which writes down whether its published weights are asked for."""

    asked: ClassVar[list[bool]] = []

    def __init__(self, num_classes: int, width: int, pretrained: bool = False) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, width), nn.ReLU(), nn.Linear(width, num_classes)
        )
        self.asked.append(pretrained)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one uninterrupted run, shared by the tests that compare with it."""
    folder = tmp_path_factory.mktemp("straight")
    run(folder)
    return folder


def test_a_run_leaves_everything(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert names >= {
        "settings.yaml",
        "environment.json",
        "status.json",
        "metrics.jsonl",
        "summary.json",
        "predictions.npz",
        "misclassified.png",
        "correct.png",
        "confusion.png",
        "curves.png",
        "checkpoints",
    }
    status = json.loads((straight / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    predictions = Predictions.load(straight / "predictions.npz")
    summary = json.loads((straight / "summary.json").read_text())
    assert len(predictions.label) == 80
    assert summary["test/accuracy"] == pytest.approx((predictions.prediction == predictions.label).mean())
    assert summary["dataset"] == "synthetic"
    assert "val/accuracy" in summary
    assert sum(map(sum, summary["confusion_matrix"])) == 80


def test_every_step_is_logged_once_with_its_lr(straight: Path) -> None:
    lines = [line for line in read_metrics(straight / "metrics.jsonl") if "lr" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[6]["lr"] == pytest.approx(0.2)  # the step after epoch 1, where the LR peaks
    assert lines[5]["epoch"] == 1.0


def test_the_row_of_an_epoch_is_the_mean_of_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", max_steps=7)
    (row,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["1/3"])
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "lr" in line][:6]
    assert float(row[2]) == pytest.approx(sum(line["train/loss"] for line in lines) / 6, abs=1e-4)
    assert float(row[3].rstrip("%")) / 100 == pytest.approx(sum(line["train/accuracy"] for line in lines) / 6, abs=1e-4)


def test_learning_happens(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", synthetic_size=2000, epochs=4, width=8)
    assert summary["test/accuracy"] > 0.3  # chance is 0.1


@pytest.mark.parametrize("stop", [1, 5, 6, 13])
def test_a_run_in_two_pieces_ends_with_the_same_bits(stop: int, straight: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", max_steps=stop)
    run(tmp_path / "run")
    assert_same_weights(straight, tmp_path / "run")
    without_time = [
        [
            {k: v for k, v in line.items() if k != "images_per_second"}
            for line in read_metrics(folder / "metrics.jsonl")
            if "train/loss" in line
        ]
        for folder in (straight, tmp_path / "run")
    ]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize(
    "changes",
    [{"augment_backend": "albumentations"}, {"augment_backend": "albumentations", "num_workers": 2}, {"eval_every": 2}],
)
def test_how_it_is_carried_out_does_not_change_a_bit(changes: dict[str, Any], straight: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", **changes)
    assert_same_weights(straight, tmp_path / "run")


def test_averaged_weights_survive_a_stop(tmp_path: Path) -> None:
    for name, stops in (("straight", (None,)), ("pieces", (7, None))):
        for stop in stops:
            run(tmp_path / name, ema_decay=0.9, max_steps=stop)
    first, second = (checkpoint.load(tmp_path / n / "checkpoints" / "step-000018") for n in ("straight", "pieces"))
    assert all(torch.equal(first.evaluated[name], second.evaluated[name]) for name in first.evaluated)
    assert not all(torch.equal(first.evaluated[name], first.model[name]) for name in first.model)


def test_a_finished_run_is_not_trained_again(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")}
    summary = run(straight)
    assert "is finished" in capsys.readouterr().out
    assert summary["step"] == STEPS
    assert before == {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")}


def test_the_settings_of_a_finished_run_stay_those_of_its_results(straight: Path) -> None:
    before = (straight / "settings.yaml").read_bytes()
    run(straight, tta="flip")
    with pytest.raises(SettingsError, match=rf"max_steps: 5, but \S+ has been trained for {STEPS} steps; give another"):
        run(straight, max_steps=5)
    assert (straight / "settings.yaml").read_bytes() == before
    assert status_of(straight)["state"] == "finished"


def test_other_settings_in_the_same_folder_are_refused(straight: Path) -> None:
    with pytest.raises(SettingsError, match=r"max_lr 0.2 -> 0.1; seed 0 -> 1"):
        run(straight, max_lr=0.1, seed=1)


def test_a_second_training_in_the_same_folder_is_refused(straight: Path) -> None:
    from filelock import FileLock

    with FileLock(straight / ".lock"), pytest.raises(SettingsError, match="another training"):
        run(straight)


def test_only_damaged_checkpoints_stop_the_run(tmp_path: Path) -> None:
    run(tmp_path / "run", max_steps=7)
    for file in (tmp_path / "run").rglob("model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        run(tmp_path / "run")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_value_stops_before_the_step(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of step 8 overflow; the gradient can do so while the loss is finite."""
    forward, backward, models = step_module.forward, Accelerator.backward, []

    def overflowing_forward(state: Any, model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, totals = forward(state, model, batch)
        models.append(model)
        if what == "loss" and len(models) == 8:
            totals[0] = float("inf")
        return loss, totals

    def overflowing_backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
        backward(accelerator, loss)
        if what == "gradient" and len(models) == 8:
            next(models[-1].parameters()).grad[0] = float("inf")

    monkeypatch.setattr(step_module, "forward", overflowing_forward)
    monkeypatch.setattr(Accelerator, "backward", overflowing_backward)
    expected = rf"^step 8, lr 0\.\d+: the {what} is not finite .*; lower --max-lr or raise"
    with pytest.raises(NonFiniteError, match=expected):
        run(tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    found = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert (found["step"], len(set(found["images"]))) == (8, 60)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 7
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-000006"
    assert all(torch.isfinite(value.float()).all() for value in checkpoint.load(newest).model.values())
    monkeypatch.undo()
    assert run(tmp_path / "run")["step"] == STEPS


class NanModel(torch.nn.Linear):
    """A model whose logits are nan from the start."""

    def __init__(self) -> None:
        super().__init__(3, 10)
        torch.nn.init.constant_(self.weight, float("nan"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("precision", "tried"), [("no", ""), ("bf16", "try --precision no, and ")], ids=["float32", "bf16"]
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="on a GPU the loss is not checked in the first step")
def test_in_the_first_step_the_lr_is_no_reason(precision: str, tried: str, tmp_path: Path) -> None:
    given = {name: value for name, value in TINY.items() if name != "width"}
    with pytest.raises(NonFiniteError, match=r"^step 1, lr ") as caught:
        fit(Settings(**given, run_dir=tmp_path / "run", precision=precision), model=NanModel())
    message = str(caught.value)
    assert f"; no step was taken before, so it is not the LR: {tried}check data, initial weights, model and loss;" in (
        message
    )
    assert "--max-lr" not in message
    assert "\n" not in message


def test_broken_weights_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a gradient that overflows while the loss is still finite."""
    train_step = train_module.train_step

    def breaking(state: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        totals = train_step(state, *args, **kwargs)
        torch.nn.init.constant_(next(state.model.parameters()), float("inf"))
        return totals

    monkeypatch.setattr(train_module, "train_step", breaking)
    with pytest.raises(NonFiniteError, match="after step 1 is not finite"):
        run(tmp_path / "run", max_steps=1)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") is None


def test_a_disk_that_fills_up_is_survived_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = checkpoint.save

    def full_after_the_first(folder: Path, state: checkpoint.CheckpointData, *, keep: int) -> Path:
        if state.step > 6:
            raise OutOfResourcesError("the disk is full")
        return save(folder, state, keep=keep)

    monkeypatch.setattr(checkpoint, "save", full_after_the_first)
    with pytest.raises(OutOfResourcesError):
        run(tmp_path / "run")
    assert "training goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(tmp_path / "run")["step"] == STEPS


def test_the_range_test_leaves_no_files(straight: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    lr_range(Settings(**TINY), schedule=LrRange(total_steps=12, min_lr=1e-3, max_lr=1.0, growth="exponential"))
    assert sorted(tmp_path.rglob("*")) == before
    run(tmp_path / "run")
    assert_same_weights(straight, tmp_path / "run")


def test_accumulation_changes_nothing_without_batch_norm(tmp_path: Path) -> None:
    """Batch norm would see smaller micro-batches."""
    folders = [tmp_path / "together", tmp_path / "accumulated"]
    for folder, count in zip(folders, (1, 3), strict=True):
        run(folder, model=f"{__name__}:WithoutNorms", grad_accum_steps=count)
    first, second = ([line for line in read_metrics(folder / "metrics.jsonl") if "lr" in line] for folder in folders)
    assert [line["lr"] for line in first] == [line["lr"] for line in second]
    assert [line["train/loss"] for line in first] == pytest.approx([line["train/loss"] for line in second], rel=1e-5)
    torch.testing.assert_close(*map(weights, folders), rtol=1e-4, atol=1e-6)


def test_published_weights_are_asked_for_at_the_first_start_alone(tmp_path: Path) -> None:
    WithoutNorms.asked.clear()
    for stop in (3, None):
        run(tmp_path / "run", model=f"{__name__}:WithoutNorms", pretrained=True, max_steps=stop)
    assert WithoutNorms.asked == [True, False]


def evaluated_as(*accuracies: float) -> Callable[..., dict[str, float]]:
    """Return an evaluation at the end of an epoch that finds one of these accuracies after the other."""
    remaining = iter(accuracies)
    return lambda *_, **__: {"val/accuracy": next(remaining), "val/loss": 1.0}


def test_the_best_accuracy_is_the_highest_of_all_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "_evaluate_epoch", evaluated_as(0.5, 0.99, 0.0))
    summary = run(tmp_path / "run", epochs=4)
    assert summary["val/best_accuracy"] == 0.99
    assert summary["val/accuracy"] not in (0.5, 0.99, 0.0)  # of the last epoch


@pytest.mark.parametrize(("min_delta", "steps"), [(0.01, STEPS), (0.05, 12)])
def test_a_smaller_improvement_than_min_delta_is_none(
    min_delta: float, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_evaluate_epoch", evaluated_as(0.5, 0.52))
    given = {"patience": 1, "min_delta": min_delta}
    assert run(tmp_path / "run", callbacks="early_stopping", callback_args=given)["step"] == steps


def test_tta_is_measured_on_test_set_and_hold_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plain view as the only one both numbers are the same."""
    monkeypatch.setitem(evaluation.VIEWS, "flip", [(1.0, 0, 0, False)])
    summary = run(tmp_path / "run", tta="flip", max_steps=2)
    assert summary["test/accuracy_tta"] == summary["test/accuracy"]
    assert summary["val/accuracy_tta"] == summary["val/accuracy"]
    assert "val/accuracy_tta" not in run(tmp_path / "plain", max_steps=2)


def test_airbench94_learns_with_muon_and_a_whitened_stem(tmp_path: Path) -> None:
    techniques = {"whitening": True, "identity_init": True, "norm_scale": False, "norm_gain": 1.7, "optimizer": "muon"}
    summary = run(
        tmp_path / "run",
        model="airbench94",
        width=8,
        momentum=0.85,
        max_lr=3.0,
        low_res_fraction=0.34,
        synthetic_size=1000,
        **techniques,
    )
    assert summary["test/accuracy"] > 0.5
    saved = weights(tmp_path / "run")
    assert saved["stem.0.weight"].shape == (24, 3, 2, 2)
    assert torch.equal(saved["backbone.stage1.halve.2.weight"], torch.full((8,), 1.7))
