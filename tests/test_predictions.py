"""Numbers from predictions, checked by hand, and the file they are kept in."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from cifar10_accel.errors import InputError
from cifar10_accel.predictions import Predictions, best_hits, worst_mistakes


@pytest.fixture
def four() -> Predictions:
    """Four images of three classes: right and sure, right and unsure, wrong and sure, wrong and unsure."""
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.4, 0.3], [0.98, 0.01, 0.01], [0.4, 0.3, 0.3]], np.float32)
    label = np.array([0, 1, 1, 2])
    loss = -np.log(probabilities[np.arange(4), label])
    return Predictions(index=np.arange(4), label=label, probabilities=probabilities, loss=loss)


def test_the_numbers(four: Predictions) -> None:
    assert four.prediction.tolist() == [0, 1, 0, 0]
    assert four.accuracy() == 0.5
    assert four.class_accuracy().tolist() == [1.0, 0.5, 0.0]
    assert four.confusion_matrix().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert four.mean_loss() == pytest.approx(-np.log([0.9, 0.4, 0.01, 0.3]).mean(), rel=1e-5)


def test_the_order(four: Predictions) -> None:
    assert worst_mistakes(four, 10) == [2, 3]
    assert worst_mistakes(four, 1) == [2]
    assert best_hits(four, 10) == [0, 1]


def test_a_class_without_images_has_no_accuracy(four: Predictions) -> None:
    only = Predictions(four.index[:1], four.label[:1], four.probabilities[:1], four.loss[:1])
    assert np.isnan(only.class_accuracy()[1:]).all()


def test_saved_and_loaded(four: Predictions, tmp_path: Path) -> None:
    four.save(tmp_path / "p.npz")
    loaded = Predictions.load(tmp_path / "p.npz")
    for name in ("index", "label", "probabilities", "loss"):
        assert np.array_equal(getattr(loaded, name), getattr(four, name)), name
    assert set(np.load(tmp_path / "p.npz").files) == {"index", "label", "prediction", "probabilities", "loss"}


def test_a_bad_file_is_one_line_and_runs_no_code(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> object:
            return (Path.touch, (tmp_path / "was-run",))

    (tmp_path / "garbage.npz").write_bytes(b"garbage")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Touch()))
    np.savez(tmp_path / "object.npz", index=np.array([Touch()], dtype=object))
    for name in ("garbage.npz", "pickle.npz", "object.npz", "missing.npz"):
        with pytest.raises(InputError, match=name) as caught:
            Predictions.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()
