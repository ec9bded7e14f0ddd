"""Figures: pixels that can be checked, and unusual input."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.image import imread

from cifar10_accel.report import figures
from cifar10_accel.report.charts import Mark
from cifar10_accel.report.figures import (
    LrRangeCurves,
    draw_augmented,
    draw_confusion,
    draw_curves,
    draw_grid,
    draw_lr_range,
)
from cifar10_accel.runs.predictions import Predictions

NAMES = ["cat", "a very long class name", "$x_1$"]


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Return the PNG's (H, W, 3) uint8."""
    return (imread(path)[:, :, :3] * 255).round().astype(np.uint8)


def some_images(number: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)


def some_predictions(number: int) -> Predictions:
    probabilities = np.full((number, 3), [0.2, 0.7, 0.1], dtype=np.float32)
    return Predictions(np.arange(number), np.arange(number) % 3, probabilities, np.ones(number, dtype=np.float32))


def contains(picture: npt.NDArray[np.uint8], tile: npt.NDArray[np.uint8]) -> bool:
    """Return True if the picture shows the tile, each of its pixels as a square of whole pixels."""
    scale = figures.TILE // len(tile)
    large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
    rows, columns = np.nonzero((picture == large[0, 0]).all(axis=2))
    return any(
        np.array_equal(picture[y : y + large.shape[0], x : x + large.shape[1]], large)
        for y, x in zip(rows, columns, strict=True)
    )


def test_grid_shows_the_images_of_its_rows_and_no_other(tmp_path: Path) -> None:
    images = some_images(12)
    rows = [11, 3, 4, 5, 6, 7, 8, 9, 10]
    draw_grid(images, some_predictions(12), rows, NAMES, tmp_path / "grid.png", title="SYNTHETIC")
    picture = pixels(tmp_path / "grid.png")
    assert [row for row in range(12) if contains(picture, images[row])] == sorted(rows)


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (28, 1), (48, 1), (200, 3), (256, 1)])
def test_images_of_any_size_have_about_the_same_size_on_the_page(size: int, channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, channels), dtype=np.uint8)
    draw_grid(images, some_predictions(3), [0, 1, 2], NAMES, tmp_path / "grid.png", title="t")
    picture = pixels(tmp_path / "grid.png")
    assert 3 * 100 < picture.shape[1] < 8 * 240
    if size <= 80:  # larger ones are scaled down
        assert all(contains(picture, np.repeat(image, 4 - channels, axis=2)[..., :3]) for image in images)
    row = images[None].repeat(2, axis=0)
    draw_augmented(row, ["a", "b"], ["original", "epoch 0", "epoch 1"], tmp_path / "a.png", title="t")


def test_grid_marks_correct_green_and_incorrect_red(tmp_path: Path) -> None:
    grey = np.full((3, 32, 32, 3), 128, dtype=np.uint8)
    for row, strong in ((0, 0), (1, 1)):  # row 1 is correct: red below green
        path = tmp_path / f"{row}.png"
        draw_grid(grey, some_predictions(3), [row], NAMES, path, title="t")
        coloured = pixels(path).astype(int)
        saturated = coloured[np.ptp(coloured, axis=2) > 80]
        assert len(saturated) > 20
        assert set(saturated.argmax(axis=1)) == {strong}


def test_grid_of_nothing_is_a_title(tmp_path: Path) -> None:
    draw_grid(some_images(3), some_predictions(3), [], NAMES, tmp_path / "none.png", title="Worst mistakes")
    picture = pixels(tmp_path / "none.png")
    assert picture.shape[0] < 150
    assert picture.min() < 128


def test_the_title_is_in_the_picture(tmp_path: Path) -> None:
    for title in ("CIFAR-10", "SYNTHETIC"):
        draw_grid(some_images(3), some_predictions(3), [0], NAMES, tmp_path / f"{title}.png", title=title)
    assert not np.array_equal(pixels(tmp_path / "CIFAR-10.png"), pixels(tmp_path / "SYNTHETIC.png"))


def test_a_long_title_takes_more_lines(tmp_path: Path) -> None:
    heights = []
    for title in ("short", "long " * 60):
        draw_grid(some_images(3), some_predictions(3), [0], NAMES, tmp_path / "t.png", title=title)
        heights.append(pixels(tmp_path / "t.png").shape[0])
    assert heights[0] < heights[1]


def test_augmented_has_a_row_per_image_and_a_column_per_epoch(tmp_path: Path) -> None:
    images = some_images(6).reshape(2, 3, 32, 32, 3)
    path = tmp_path / "a.png"
    draw_augmented(images, ["cat #0", "dog #1"], ["original", "epoch 0", "epoch 1"], path, title="CIFAR-10")
    picture = pixels(path)
    assert all(contains(picture, tile) for tile in images.reshape(-1, 32, 32, 3))
    upper = picture[: -figures.TILE]
    assert [contains(upper, tile) for tile in images.reshape(-1, 32, 32, 3)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("num_classes", [1, 2, 10, 30, 120])
def test_confusion_of_any_counts(tmp_path: Path, num_classes: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 50, (num_classes, num_classes))
    matrix[0] = 0  # a class without images
    names = [f"class {number}" for number in range(num_classes)]
    draw_confusion(matrix, names, tmp_path / "c.png", title="test accuracy")
    assert pixels(tmp_path / "c.png").std() > 1


def test_confusion_colours_mistakes_apart_from_correct_predictions(tmp_path: Path) -> None:
    draw_confusion(np.array([[90, 10], [0, 100]]), ["cat", "dog"], tmp_path / "c.png", title="t")
    colours = pixels(tmp_path / "c.png").astype(int)
    blue = (colours[..., 2] - colours[..., 0] > 60).mean()
    red = (colours[..., 0] - colours[..., 2] > 60).mean()
    assert blue > 1.5 * red > 0.1


def test_curves_draw_the_metrics_of_the_rows(tmp_path: Path) -> None:
    train = [{"step": step, "epoch": step / 10, "train/loss": 1 / step, "lr": 0.1} for step in range(1, 30)]
    test = [{"step": 10 * e, "epoch": e, "test/accuracy": e / 3, "test/loss": math.nan} for e in (1, 2)]
    sizes = set()
    for number, rows in enumerate(([], train, train + test)):
        draw_curves(rows, tmp_path / f"{number}.png", title="run on $CIFAR")
        sizes.add((tmp_path / f"{number}.png").read_bytes())
    assert len(sizes) == 3


def test_curves_mark_a_change_of_the_image_size_and_leave_out_a_constant_rate(tmp_path: Path) -> None:
    rows = [{"step": step, "epoch": step / 10, "train/loss": 1 / step, "lr": 0.1} for step in range(1, 30)]
    pictures = {}
    for name, rates, changes in (
        ("constant", [0.1] * 29, []),
        ("falling", list(np.linspace(1, 0, 29)), []),
        ("marked", [0.1] * 29, [Mark(x=1.5, before="20 px", after="32 px")]),
    ):
        drawn = [row | {"lr": rate} for row, rate in zip(rows, rates, strict=True)]
        draw_curves(drawn, tmp_path / f"{name}.png", title="t", changes=changes)
        pictures[name] = pixels(tmp_path / f"{name}.png")
    assert pictures["constant"].shape[0] < pictures["falling"].shape[0]
    assert pictures["constant"].shape == pictures["marked"].shape
    assert (pictures["constant"] != pictures["marked"]).any()


@pytest.mark.parametrize("suggested", [0.1, None])
def test_lr_range_draws_with_and_without_a_suggestion(tmp_path: Path, suggested: float | None) -> None:
    lr = [10 ** (k / 20 - 4) for k in range(100)]
    loss = [2.3 - 0.01 * k for k in range(100)]
    curves = LrRangeCurves(lr=lr, loss=loss, smoothed_loss=loss, accuracy=[0.1] * 100)
    draw_lr_range(curves, tmp_path / "lr.png", title="CIFAR-10", suggestions={"steepest": suggested})
    colours = pixels(tmp_path / "lr.png").astype(int)
    has_red = ((colours[..., 0] - colours[..., 2] > 100) & (colours[..., 0] - colours[..., 1] > 100)).any()
    assert has_red == (suggested is not None)


def test_lr_range_of_a_test_that_ended_at_once(tmp_path: Path) -> None:
    for lr, loss in (([], []), ([0.1], [2.3])):
        curves = LrRangeCurves(lr=lr, loss=loss, smoothed_loss=loss, accuracy=loss)
        draw_lr_range(curves, tmp_path / "lr.png", title="CIFAR-10", suggestions={"steepest": None})
    assert (tmp_path / "lr.png").stat().st_size > 1000


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        draw_confusion(np.eye(2, dtype=np.int64), NAMES[:2], tmp_path / "none" / "c.png", title="t")


def test_confidence_is_never_rounded_up_to_certainty() -> None:
    assert figures._percent(0.99999) == "99.9%"
    assert figures._percent(1.0) == "100.0%"


def test_importing_figures_does_not_import_matplotlib() -> None:
    code = "import sys, cifar10_accel.report.figures; sys.exit('matplotlib' in sys.modules)"
    repository = str(Path(figures.__file__).parent.parent.parent)
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0
