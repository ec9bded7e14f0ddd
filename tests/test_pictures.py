"""Pictures are drawn, at a readable size, also when there is little to draw."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from cifar10_accel.pictures import draw_augmented, draw_confusion, draw_curves, draw_grid, draw_lr_range
from cifar10_accel.predictions import Predictions

NAMES = [f"class{number}" for number in range(10)]


@pytest.fixture
def predictions() -> Predictions:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(10), 50).astype(np.float32)
    label = random.integers(0, 10, 50)
    return Predictions(np.arange(50), label, probabilities, -np.log(probabilities[np.arange(50), label]))


def size_and_colours(path: Path) -> tuple[tuple[int, ...], int]:
    """Shape of the PNG and how many colours it has."""
    pixels = matplotlib.image.imread(path)
    return pixels.shape[:2], len(np.unique((pixels * 255).astype(np.uint8).reshape(-1, pixels.shape[2]), axis=0))


@pytest.mark.parametrize("num_rows", [0, 1, 40])
def test_the_grid_shows_the_images(num_rows: int, predictions: Predictions, tmp_path: Path) -> None:
    images = np.zeros((50, 32, 32, 3), np.uint8)
    images[:, :, :, 0] = 200
    draw_grid(images, predictions, range(num_rows), NAMES, tmp_path / "g.png", title="t")
    pixels = (matplotlib.image.imread(tmp_path / "g.png")[..., :3] * 255).round()
    red = (pixels == [200, 0, 0]).all(axis=-1).sum()
    side_squared = (32 * 5) ** 2  # whole multiples of a pixel, so every image keeps its exact colour
    assert red == pytest.approx(num_rows * side_squared, rel=0.02)


def test_charts_have_content(predictions: Predictions, tmp_path: Path) -> None:
    draw_confusion(predictions.confusion_matrix(), NAMES, tmp_path / "c.png", title="t")
    lines = [{"epoch": e, "lr": 0.1, "train/loss": 2.0 - e / 5, "test/accuracy": e / 5} for e in range(5)]
    draw_curves([*lines, {"epoch": 5, "train/loss": float("nan")}], tmp_path / "m.png", title="t")
    draw_lr_range([0.1, 1.0], [2.0, 1.0], [2.0, 1.5], [0.1, 0.2], tmp_path / "l.png", title="t",
                  suggestions={"steepest": 0.3, "minimum / 10": None})  # fmt: skip
    draw_augmented(np.zeros((2, 3, 32, 32, 3), np.uint8), ["a", "b"], ["0", "1", "2"], tmp_path / "a.png", title="t")
    for name in ("c", "m", "l", "a"):
        (height, width), colours = size_and_colours(tmp_path / f"{name}.png")
        assert min(height, width) > 300, name
        assert colours > 20, name


def test_nothing_to_draw_is_no_error(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "m.png", title="t")
    draw_lr_range([], [], [], [], tmp_path / "l.png", title="t", suggestions={"steepest": None})


def test_a_folder_that_is_not_there(predictions: Predictions, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        draw_confusion(predictions.confusion_matrix(), NAMES, tmp_path / "none" / "c.png", title="t")
