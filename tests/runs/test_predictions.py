"""Predictions: the metrics computed from them, and their file."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest  # type: ignore[import-untyped]

from cifar10_accel.errors import InputError
from cifar10_accel.runs.predictions import (
    Predictions,
    changes,
    most_confident_correct,
    wilson_interval,
    worst_mistakes,
)


def predictions() -> Predictions:
    """Five images of four classes (class 3 has none): rows 0, 1 and 4 are correct, 2 and 3 are not."""
    label = np.array([0, 1, 1, 2, 2])
    probabilities = np.array(
        [[0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.1, 0.2, 0.4, 0.3], [0.9, 0.04, 0.05, 0.01], [0, 0, 1, 0]],
        dtype=np.float32,
    )
    loss = -np.log(probabilities[np.arange(5), label])
    return Predictions(index=np.array([10, 11, 12, 13, 14]), label=label, probabilities=probabilities, loss=loss)


def test_metrics() -> None:
    made = predictions()
    assert made.prediction.tolist() == [0, 1, 2, 0, 2]
    assert made.correct.tolist() == [True, True, False, False, True]
    assert made.confidence.tolist() == pytest.approx([0.7, 0.6, 0.4, 0.9, 1.0])
    assert made.accuracy() == 0.6
    assert made.mean_loss() == pytest.approx(-np.log([0.7, 0.6, 0.2, 0.05, 1.0]).mean())
    assert made.class_accuracy()[:3].tolist() == [1.0, 0.5, 0.5]
    assert np.isnan(made.class_accuracy()[3])


def test_confusion_matrix_has_the_true_class_in_rows() -> None:
    matrix = predictions().confusion_matrix()
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert matrix.dtype == np.int64


def test_worst_mistakes_and_most_confident_correct() -> None:
    assert worst_mistakes(predictions(), 10) == [3, 2]
    assert worst_mistakes(predictions(), 1) == [3]
    assert most_confident_correct(predictions(), 10) == [4, 0, 1]
    assert most_confident_correct(predictions(), 0) == []


def test_no_mistakes() -> None:
    made = predictions()
    assert worst_mistakes(Predictions(made.index, made.prediction, made.probabilities, made.loss), 10) == []


def test_changes_are_the_rows_that_only_one_model_classifies_correctly() -> None:
    """Row 3 becomes correct, row 1 incorrect; the others stay correct."""
    before = predictions()
    shares = before.probabilities.copy()
    shares[1:4] = [[0.8, 0.1, 0.05, 0.05], [0, 0, 0.7, 0.3], [0.05, 0.05, 0.9, 0]]
    after = Predictions(before.index, before.label, shares, before.loss)
    label = np.array([0, 1, 2, 2, 2])
    before, after = (Predictions(p.index, label, p.probabilities, p.loss) for p in (before, after))
    assert changes(before, after) == ([3], [1])
    assert changes(after, before) == ([1], [3])
    assert changes(before, before) == ([], [])


def test_save_and_load(tmp_path: Path) -> None:
    made, path = predictions(), tmp_path / "predictions.npz"
    made.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions.npz"]
    loaded = Predictions.load(path)
    for name in ("index", "label", "probabilities", "loss"):
        assert np.array_equal(getattr(made, name), getattr(loaded, name)), name
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"index", "label", "prediction", "probabilities", "loss"}
        assert file["prediction"].tolist() == [0, 1, 2, 0, 2]


def test_probabilities_with_tta_are_kept_and_older_files_are_read(tmp_path: Path) -> None:
    made, path = predictions(), tmp_path / "predictions.npz"
    assert made.num_correct_tta() is None
    with_tta = replace(made, probabilities_tta=np.roll(made.probabilities, -1, axis=1))
    with_tta.save(path)
    loaded = Predictions.load(path)
    assert loaded.probabilities_tta is not None
    assert np.array_equal(loaded.probabilities_tta, np.roll(made.probabilities, -1, axis=1))
    assert loaded.num_correct_tta() == 1  # row 2: class 2 becomes class 1
    made.save(path)  # as versions before did
    assert Predictions.load(path).probabilities_tta is None
    replace(made, probabilities_tta=made.probabilities[:3]).save(path)
    with pytest.raises(InputError, match="do not belong together"):
        Predictions.load(path)


@pytest.mark.parametrize(("correct", "num"), [(8, 10), (0, 10), (10, 10), (1, 1), (9132, 10_000), (599, 600)])
def test_wilson_intervals_are_those_of_scipy(correct: int, num: int) -> None:
    expected = binomtest(correct, num).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, num) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_intervals_cover_the_true_accuracy() -> None:
    random = np.random.default_rng(0)
    for true, num in ((0.9, 200), (0.99, 500), (0.5, 50)):
        counts = random.binomial(num, true, 4000)
        covered = [low <= true <= high for low, high in (wilson_interval(int(count), num) for count in counts)]
        assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_same_predictions_same_bytes(tmp_path: Path) -> None:
    predictions().save(tmp_path / "a.npz")
    predictions().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "npy", "pickled", "incomplete"])
def test_a_bad_file_is_an_input_error_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "predictions.npz"
    predictions().save(path)
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "text":
            path.write_text("accuracy: good")
        case "npy":
            with path.open("wb") as file:
                np.save(file, np.arange(3))
        case "pickled":
            np.savez(path, **{name: np.array([{}]) for name in ("index", "label", "probabilities", "loss")})
        case "incomplete":
            np.savez(path, index=np.arange(3))
    with pytest.raises(InputError) as caught:
        Predictions.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_byte_is_found_or_does_no_harm(tmp_path: Path) -> None:
    made, path = predictions(), tmp_path / "predictions.npz"
    made.save(path)
    whole = path.read_bytes()
    found = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            assert np.array_equal(Predictions.load(path).loss, made.loss)
        except InputError:
            found += 1
    assert found > 0.5 * len(whole)  # the others are time stamps and other unused bytes


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> object:
            return Path.touch, (tmp_path / "was-run",)

    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Touch()))
    np.savez(tmp_path / "object.npz", index=np.array([Touch()], dtype=object))
    for name in ("pickle.npz", "object.npz"):
        with pytest.raises(InputError, match=name):
            Predictions.load(tmp_path / name)
    assert not (tmp_path / "was-run").exists()


def test_arrays_of_different_lengths_are_an_input_error(tmp_path: Path) -> None:
    made, path = predictions(), tmp_path / "predictions.npz"
    arrays = {"index": made.index, "prediction": made.prediction, "probabilities": made.probabilities}
    np.savez(path, **arrays, label=made.label[:3], loss=made.loss)
    with pytest.raises(InputError, match="do not belong together"):
        Predictions.load(path)
