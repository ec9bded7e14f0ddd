"""Training dynamics: the record of each training image, also of interrupted runs, and the statistics of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from training_commands import TINY, flags, run_python

from cifar10_accel.data.batch_plan import epoch_order
from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import InputError
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.dynamics import UNSEEN, Dynamics
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training import setup as training_setup
from cifar10_accel.training.dynamics_recorder import DynamicsRecorder

DROPPING = TINY | {"batch_size": 100, "checkpoint_every": 0.4}  # 3 steps of 100 leave out 60 of 360 images


def run(folder: Path, **changes: object) -> Dynamics:
    fit(Settings(**(DROPPING | {"run_dir": folder} | changes)))
    return Dynamics.load(folder / "dynamics.npz")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dynamics") / "run"
    run(folder)
    return folder


def test_every_image_of_an_epoch_is_recorded_once(straight: Path) -> None:
    """Exactly those that the order of the epoch puts into batches; their means are those of the metrics."""
    found = Dynamics.load(straight / "dynamics.npz")
    assert (found.loss.shape, found.prediction.dtype, found.label.dtype) == ((3, 360), np.int8, np.int8)
    for epoch in range(3):
        expected = np.zeros(360, dtype=bool)
        expected[epoch_order(0, epoch, 360)[:300]] = True
        assert np.array_equal(found.seen[epoch], expected)
        assert np.array_equal(np.isfinite(found.loss[epoch]), expected)
        assert not found.correct[epoch, ~expected].any()
    lines = [line for line in read_metrics(straight / "metrics.jsonl") if "train/loss" in line]
    assert len(lines) == 9
    for epoch in range(3):
        of_epoch = lines[3 * epoch : 3 * epoch + 3]
        assert np.nanmean(found.loss[epoch].astype(float)) == pytest.approx(
            np.mean([line["train/loss"] for line in of_epoch]), rel=1e-3
        )
        assert found.correct[epoch].sum() / 300 == pytest.approx(np.mean([line["train/accuracy"] for line in of_epoch]))


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_in_two_pieces_records_the_same_bytes(stop: int, straight: Path, tmp_path: Path) -> None:
    if stop < 3:
        with pytest.raises(InputError):  # no epoch has ended
            run(tmp_path / "run", max_steps=stop)
    else:
        assert len(run(tmp_path / "run", max_steps=stop).loss) == stop // 3
    run(tmp_path / "run")
    assert (tmp_path / "run" / "dynamics.npz").read_bytes() == (straight / "dynamics.npz").read_bytes()


def test_a_crash_after_the_record_and_before_its_checkpoint(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is then one epoch ahead of the newest checkpoint, and that epoch is trained again."""
    save = checkpoint.save

    def dies_after_two_epochs(folder: Path, state: checkpoint.CheckpointData, *, keep: int) -> Path:
        if state.step == 6:
            raise KeyboardInterrupt
        return save(folder, state, keep=keep)

    monkeypatch.setattr(checkpoint, "save", dies_after_two_epochs)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert len(Dynamics.load(tmp_path / "run" / "dynamics.npz").loss) == 2
    monkeypatch.undo()
    run(tmp_path / "run")
    assert (tmp_path / "run" / "dynamics.npz").read_bytes() == (straight / "dynamics.npz").read_bytes()


def test_a_lost_record_costs_its_epochs_and_nothing_else(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", max_steps=4)
    (tmp_path / "run" / "dynamics.npz").write_bytes(b"not an archive")
    found = run(tmp_path / "run")
    assert "start with epoch 2" in capsys.readouterr().err
    assert not found.seen[0].any()
    assert np.array_equal(found.loss[1:], Dynamics.load(straight / "dynamics.npz").loss[1:], equal_nan=True)


def test_recording_changes_no_bit_of_the_weights(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DynamicsRecorder, "record", lambda *_: None)
    found = run(tmp_path / "run")
    assert not found.seen.any()
    with_it, without = (
        checkpoint.load(folder / "checkpoints" / "step-000009").model for folder in (straight, tmp_path / "run")
    )
    assert all(torch.equal(with_it[name], without[name]) for name in with_it)


def test_mixed_images_are_recorded_under_their_own_label(tmp_path: Path) -> None:
    found = run(tmp_path / "run", cutmix_alpha=1.0, label_smoothing=0.2, grad_accum_steps=2, ema_decay=0.9)
    assert (found.seen.sum(axis=1) == 300).all()
    sure = found.loss.astype(float) < np.log(2)  # more than half of the probability: no other class can have more
    assert (found.correct[sure]).all()
    assert not found.correct[found.loss.astype(float) > np.log(10)].any()  # less than chance


def test_two_processes_record_together_and_go_on_as_one(straight: Path, tmp_path: Path) -> None:
    for count, options in ((2, ["--max-steps=5"]), (1, [])):
        args = [*flags(DROPPING | {"run_dir": tmp_path / "run"}), *options]
        done = run_python("-m", "cifar10_accel.train", *args, cwd=tmp_path, num_processes=count)
        assert done.returncode == 0, done.stderr
    one, two = (Dynamics.load(folder / "dynamics.npz") for folder in (straight, tmp_path / "run"))
    assert np.array_equal(one.seen, two.seen)
    assert np.array_equal(one.label, two.label)
    gap = np.abs(one.loss[0].astype(float) - two.loss[0])  # batch norm sees other micro-batches
    assert np.nanmedian(gap) < 0.3


def by_hand() -> Dynamics:
    """Four epochs of five images: easy, forgotten twice, never learned, mislabelled, unseen."""
    label = np.array([0, 1, 2, 3, 0], dtype=np.int8)
    prediction = np.array(
        [[0, 1, 1, 2, UNSEEN], [0, 2, 0, 2, UNSEEN], [0, 1, 1, 2, UNSEEN], [0, 0, UNSEEN, 1, UNSEEN]], dtype=np.int8
    )
    probability = np.array(
        [[0.9, 0.6, 0.3, 0.01, 1], [0.9, 0.2, 0.3, 0.01, 1], [0.9, 0.6, 0.3, 0.01, 1], [0.9, 0.2, 1, 0.01, 1]]
    )
    loss = np.where(prediction == UNSEEN, np.nan, -np.log(probability)).astype(np.float16)
    return Dynamics(loss, prediction, label)


def test_statistics_against_values_by_hand() -> None:
    found = by_hand()
    assert found.forgetting_events().tolist() == [0, 2, 0, 0, 0]
    assert found.never_learned().tolist() == [False, False, True, True, False]
    mean, deviation = found.probability()
    assert mean[:4] == pytest.approx([0.9, 0.4, 0.3, 0.01], abs=1e-3)
    assert deviation[:4] == pytest.approx([0, 0.2, 0, 0], abs=1e-3)
    assert np.isnan(mean[4])
    assert np.isnan(found.margin()[4])
    assert found.margin()[2:4] == pytest.approx([np.log(0.3 / 0.7), np.log(0.01 / 0.99)], abs=1e-2)
    answers, counts = found.most_frequent_mistake()
    assert list(zip(answers[1:4].tolist(), counts[1:4].tolist(), strict=True)) == [(0, 1), (1, 2), (2, 3)]
    assert found.most_forgotten().tolist() == [1]
    assert found.likely_mislabelled().tolist() == [3]


def test_forgetting_is_counted_over_epochs_in_which_an_image_is_left_out() -> None:
    prediction = np.array([[1], [UNSEEN], [0], [1], [UNSEEN], [UNSEEN], [0]], dtype=np.int8)
    loss = np.zeros(prediction.shape, dtype=np.float16)
    assert Dynamics(loss, prediction, np.array([1], dtype=np.int8)).forgetting_events().tolist() == [2]


def test_a_saved_record_is_loaded_and_anything_else_refused(tmp_path: Path) -> None:
    found, path = by_hand(), tmp_path / "dynamics.npz"
    found.save(path)
    again = Dynamics.load(path)
    assert np.array_equal(found.loss, again.loss, equal_nan=True)
    assert again.prediction.dtype == np.int8
    Dynamics(found.loss, found.prediction, found.label[:3]).save(path)
    with pytest.raises(InputError, match="do not belong together"):
        Dynamics.load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="not readable"):
        Dynamics.load(path)


@pytest.mark.long
def test_labels_that_were_changed_are_the_doubted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set with one wrong label in ten, the lowest margins have many times as many."""
    changed = np.arange(1500) % 10 == 3

    def with_wrong_labels(accelerator: Accelerator, settings: Settings) -> Dataset:
        dataset = load_dataset(settings, seed=0)
        labels = np.where(changed, (dataset.train.labels + 1 + np.arange(1500) % 7) % 10, dataset.train.labels)
        return replace(dataset, train=Split(dataset.train.images, labels))

    monkeypatch.setattr(training_setup, "load_dataset_shared", with_wrong_labels)
    settings = {"synthetic_size": 1500, "val_size": 0, "epochs": 8, "peak_epoch": 2, "width": 8, "eval_every": 8}
    fit(Settings(**(TINY | settings | {"run_dir": tmp_path / "run", "checkpoint_every": 8, "log_every": 25})))
    margin = Dynamics.load(tmp_path / "run" / "dynamics.npz").margin()
    assert margin[changed].mean() < margin[~changed].mean()
    lowest = np.argsort(margin)[:150]
    assert changed[lowest].mean() > 0.4  # chance is 0.1
