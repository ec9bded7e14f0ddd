"""Figures of a run as PNG files: grids of images, confusion matrix, curves, LR range test.

Matplotlib is imported when the first figure is drawn, since the import takes long, and draws to memory, so no
display is needed. Titles come from the caller and must name the data set. Every public function raises
OSError if the file cannot be written.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cifar10_accel.report.charts import Mark
from cifar10_accel.report.curves import CROSS_ENTROPY
from cifar10_accel.report.sprite import rgb, scaled_down
from cifar10_accel.runs.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = npt.NDArray[np.uint8]

DPI = 160
TILE = 160  # screen pixels along the side of an image, about; those of a CIFAR image are enlarged five times
GRID_COLUMNS = 8
MARGIN, LINE_HEIGHT = 40, 24  # in screen pixels; the second is of a line of text
INK, FAINT, GRID, BLUE, GREEN, RED = "#1f2933", "#7b8794", "#e4e7eb", "#2b6cb0", "#1a7f4b", "#c0392b"
FRAME = 210  # grey value of the frame that separates a white image from the page
SPLIT_COLOURS = {"train": "#9fb3c8", "val": "#dd7f1c", "test": BLUE}
ARROW, ELLIPSIS = "\N{RIGHTWARDS ARROW}", "\N{HORIZONTAL ELLIPSIS}"
MAX_NAME_LENGTH = 11  # characters of a class name under an image, so that neighbours do not touch
MAX_CLASSES_WITH_COUNTS = 20  # with more the numbers in a confusion matrix are too small to read


@dataclass(frozen=True, kw_only=True)
class LrRangeCurves:
    """Values of an LR range test, one per step; accuracies are 0..1."""

    lr: Sequence[float]
    loss: Sequence[float]
    smoothed_loss: Sequence[float]
    accuracy: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class _Spacing:
    """Space for text beside the tiles of a sheet, in screen pixels."""

    left: int
    between: int
    below: int
    above: int = 0


def draw_grid(
    images: Pixels, predictions: Predictions, rows: Sequence[int], class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw the images of these rows, each above 'true -> predicted', confidence and index.

    Args:
        images: (N, S, S, C) uint8 of any size, C 1 or 3, in the order of the predictions.
        predictions: Predictions for these images.
        rows: Images to draw, in this order.
        class_names: Names of the classes.
        path: File to write.
        title: Title of the figure.
    """
    heading = title if rows else f"{title}: none"
    spacing = _Spacing(left=MARGIN, between=56, below=2 * LINE_HEIGHT + 24)
    tiles = _enlarged(images[list(rows)])
    axes, corners = _sheet(tiles, heading, GRID_COLUMNS, spacing)
    middle, below = tiles.shape[2] / 2, tiles.shape[1] + 8
    for row, (x, y) in zip(rows, corners, strict=True):
        names = [_shortened(class_names[c]) for c in (predictions.label[row], predictions.prediction[row])]
        colour = GREEN if predictions.correct[row] else RED
        detail = f"{_percent(predictions.confidence[row])}   #{predictions.index[row]}"
        _write(axes, (x + middle, y + below), f" {ARROW} ".join(names), color=colour, fontsize=6.8, fontweight="bold")
        _write(axes, (x + middle, y + below + LINE_HEIGHT), detail, color=FAINT, fontsize=6.5)
    _save(axes, path)


def draw_augmented(
    images: Pixels, row_names: Sequence[str], column_names: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw a table of images, such as a row per image and a column per epoch.

    Args:
        images: (R, C, S, S, 1 or 3) uint8, of any size.
        row_names: R names, to the left of the rows.
        column_names: C names, above the columns.
        path: File to write.
        title: Title of the figure.
    """
    left = MARGIN + 10 * max(len(_plain(name)) for name in row_names) + 16
    spacing = _Spacing(left=left, between=12, below=12, above=LINE_HEIGHT + 8)
    tiles = _enlarged(images.reshape(-1, *images.shape[2:]))
    axes, corners = _sheet(tiles, title, len(column_names), spacing)
    height, width = tiles.shape[1:3]
    for column, name in enumerate(column_names):
        x, y = corners[column]
        _write(axes, (x + width / 2, y - LINE_HEIGHT), name, color=FAINT, fontsize=7)
    for row, name in enumerate(row_names):
        x, y = corners[row * len(column_names)]
        _write(axes, (x - 14, y + height / 2 - LINE_HEIGHT / 2), name, color=INK, fontsize=7, ha="right")
    _save(axes, path)


def draw_confusion(matrix: npt.NDArray[np.int64], class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draw the confusion matrix, true class by predicted class, coloured by share of the true class.

    Correct (blue) and incorrect predictions (red) have a colour scale each: on one scale the mistakes would all be
    white.

    Args:
        matrix: Counts, (K, K), rows true.
        class_names: K names.
        path: File to write.
        title: Title of the figure.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    is_correct = np.eye(len(matrix), dtype=bool)
    worst = max(float(shares[~is_correct].max(initial=0)), 1e-9)
    axes = _charts(title, width=8.6, height=8.2)[0]
    axes.imshow(np.where(is_correct, shares, np.nan), cmap="Blues", vmin=0, vmax=1.25)
    axes.imshow(np.where(is_correct | (matrix == 0), np.nan, shares), cmap="Reds", vmin=0, vmax=1.25 * worst)
    places, names = range(len(matrix)), [_plain(name) for name in class_names]
    size = min(10.0, 400 / max(1, len(names)))  # points, so that many names do not overlap
    axes.set_xticks(places, names, rotation=40 if size > 8 else 90, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)
    if len(matrix) <= MAX_CLASSES_WITH_COUNTS:
        _write_counts(axes, matrix, shares, worst)
    _save(axes, path)


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path, *, title: str, changes: Sequence[Mark] = ()) -> None:
    """Draw loss, accuracy and LR against the epoch; no LR if it is constant.

    Args:
        rows: Rows of metrics.jsonl: `epoch` (passes over the data, with fractions) and some of `lr`, `<split>/loss` and
            `<split>/accuracy` for the splits train, val and test, and `train/cross_entropy`; nan makes a gap.
        path: File to write.
        title: Title of the figure.
        changes: Epochs to mark, such as one from which on the images are larger.
    """
    rates = {row["lr"] for row in rows if "lr" in row}
    has_lr = len(rates) != 1 or len(rows) == 1
    loss, accuracy, *others = _charts(
        title, width=9, height=9 if has_lr else 8, ratios=(3, 3, 1.4)[: 3 if has_lr else 2]
    )
    for split, colour in SPLIT_COLOURS.items():
        _draw_series(loss, rows, f"{split}/loss", colour, label="{name}, last {last:.3f}")
        _draw_series(accuracy, rows, f"{split}/accuracy", colour, label="{name}, last {last:.2%}")
    _draw_series(loss, rows, CROSS_ENTROPY, GREEN, label="{name}, cross-entropy, last {last:.3f}")
    accuracy.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    loss.set(ylabel="loss")
    accuracy.set(ylabel="accuracy")
    for lr in others:
        _draw_series(lr, rows, "lr", INK, label="")
        lr.set(ylabel="LR")
    (others or [accuracy])[-1].set(xlabel="epoch")
    for change in changes:
        for axes in (loss, accuracy, *others):
            axes.axvline(change.x, color=FAINT, linestyle=":", linewidth=1)
        note = f" {change.before} {ARROW} {change.after}"
        loss.annotate(note, (change.x, 0.97), xycoords=("data", "axes fraction"), color=FAINT, fontsize=8)
    for axes in (loss, accuracy):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    _save(loss, path)


def draw_lr_range(curves: LrRangeCurves, path: Path, *, title: str, suggestions: Mapping[str, float | None]) -> None:
    """Draw loss and accuracy against the LR; suggested LRs that are not None are marked under their names."""
    lr, smoothed_loss = curves.lr, curves.smoothed_loss
    loss_axes, accuracy_axes = _charts(title, width=9, height=6.5, ratios=(2, 1))
    loss_axes.plot(lr, curves.loss, color=SPLIT_COLOURS["train"], linewidth=0.8, label="loss")
    loss_axes.plot(lr, smoothed_loss, color=BLUE, linewidth=2, label="smoothed")
    accuracy_axes.plot(lr, curves.accuracy, color=SPLIT_COLOURS["train"], linewidth=0.8)
    for (name, suggested), style in zip(suggestions.items(), ("--", ":", "-."), strict=False):
        if suggested is not None:
            loss_axes.axvline(suggested, color=RED, linestyle=style, label=f"{_plain(name)}: {suggested:.3g}")
            accuracy_axes.axvline(suggested, color=RED, linestyle=style)
    if smoothed_loss:  # without limits the divergence at the end would flatten the rest of the curve
        lowest, first = min(smoothed_loss), smoothed_loss[0]
        loss_axes.set_ylim(lowest - 0.15 * (first - lowest) - 0.05, first + 0.5 * (first - lowest) + 0.05)
    accuracy_axes.set_xscale("log")
    accuracy_axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    loss_axes.set(ylabel="loss")
    accuracy_axes.set(ylabel="accuracy", xlabel="LR (log scale)")
    loss_axes.legend(frameon=False)
    _save(loss_axes, path)


def _sheet(tiles: Pixels, title: str, columns: int, spacing: _Spacing) -> tuple["Axes", list[tuple[int, int]]]:
    """Return a page of the tiles (N, H, W, 3), row by row: axes in screen pixels, and each tile's upper left corner."""
    from matplotlib.figure import Figure

    height, width = tiles.shape[1:3]
    step_x, step_y = width + spacing.between, height + spacing.below
    page_width = spacing.left + columns * step_x - spacing.between + MARGIN
    heading = textwrap.wrap(_plain(title), (page_width - 2 * MARGIN) // 14)
    top = MARGIN + len(heading) * (LINE_HEIGHT + 6) + 10 + spacing.above
    page_height = top + math.ceil(len(tiles) / columns) * step_y + MARGIN // 2
    page = np.full((page_height, page_width, 3), 255, dtype=np.uint8)
    corners = [(spacing.left + i % columns * step_x, top + i // columns * step_y) for i in range(len(tiles))]
    for (x, y), tile in zip(corners, tiles, strict=True):
        page[y - 1 : y + height + 1, x - 1 : x + width + 1] = FRAME
        page[y : y + height, x : x + width] = tile
    axes = Figure(figsize=(page_width / DPI, page_height / DPI), dpi=DPI).add_axes((0, 0, 1, 1))
    axes.imshow(page, extent=(0, page_width, page_height, 0), interpolation="nearest", aspect="auto")
    axes.axis("off")
    for number, line in enumerate(heading):
        axes.text(MARGIN, MARGIN + number * (LINE_HEIGHT + 6), line, color=INK, fontsize=10, va="top")
    return axes, corners


def _enlarged(images: Pixels) -> Pixels:
    """Return images (N, S, S, C) as RGB, about TILE pixels a side; pixels of small ones become sharp squares."""
    factor = max(1, TILE // images.shape[1])
    return scaled_down(rgb(images), TILE).repeat(factor, axis=1).repeat(factor, axis=2)


def _charts(title: str, *, width: float, height: float, ratios: Sequence[float] = (1,)) -> list["Axes"]:
    """Return empty axes one above the other, sharing x, under a title; sizes in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12)  # inches
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    figure.suptitle(textwrap.fill(_plain(title), int(width * 11)), color=INK, fontsize=11)
    grid = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
    for axes in grid[:, 0]:
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(which="both", colors=INK, length=0)
    return list(grid[:, 0])


def _draw_series(axes: "Axes", rows: Sequence[Mapping[str, float]], name: str, colour: str, *, label: str) -> None:
    """Draw the metric's line, with dots if there are few points; nothing if no row has it."""
    epochs = [row["epoch"] for row in rows if name in row]
    values = [row[name] for row in rows if name in row]
    if values:
        marker = "o" if len(values) <= 60 and name != "lr" else ""
        text = label.format(name=name.split("/")[0], last=values[-1])
        axes.plot(epochs, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=text)


def _write_counts(axes: "Axes", matrix: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], worst: float) -> None:
    """Write each cell's count and, on the diagonal, the percentage below it."""
    for (row, column), count in np.ndenumerate(matrix):
        is_correct = row == column
        dark = shares[row, column] > (0.75 if is_correct else 0.75 * worst)
        text = f"{count}\n{shares[row, column]:.1%}" if is_correct else str(count)
        colour = "white" if dark and count else (INK if count else FAINT)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _write(axes: "Axes", place: tuple[float, float], text: str, **style: Any) -> None:
    axes.text(*place, _plain(text), **({"ha": "center", "va": "top"} | style))


def _save(axes: "Axes", path: Path) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, format="png", dpi=DPI)


def _plain(text: str) -> str:
    """Return the text escaped, so that dollar signs do not start a formula."""
    return text.replace("$", r"\$")


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + ELLIPSIS


def _percent(share: float) -> str:
    """Return a percentage with one decimal, rounded down, so that only 1 is 100%."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
