"""The pictures of a run as PNG files: sheets of images, confusion matrix, curves, LR range test.

Matplotlib is imported when the first picture is drawn (that takes long), and draws to memory, so no
display is needed. Titles are the caller's and must name the data set. Every function here raises
OSError if the file cannot be written.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cifar10_accel.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = npt.NDArray[np.uint8]

DPI = 160
SCALE = 5  # screen pixels a side of an image pixel: whole, so that each stays a crisp square
GRID_COLUMNS = 8
MARGIN, LINE = 40, 24  # in screen pixels; LINE is the height of a line of text
INK, FAINT, GRID, BLUE, GREEN, RED = "#1f2933", "#7b8794", "#e4e7eb", "#2b6cb0", "#1a7f4b", "#c0392b"
FRAME = 210  # grey around an image, so that a white one has an edge
SPLIT_COLOURS = {"train": "#9fb3c8", "val": "#dd7f1c", "test": BLUE}
ARROW, ELLIPSIS = "\N{RIGHTWARDS ARROW}", "\N{HORIZONTAL ELLIPSIS}"
LONGEST_NAME = 11  # characters of a class name under an image, so that neighbours do not touch
MOST_COUNTED_CLASSES = 20  # beyond that the numbers in a confusion matrix cannot be read


def draw_grid(
    images: Pixels, predictions: Predictions, rows: Sequence[int], class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """The images of these rows, each above 'true -> predicted', confidence and index.

    images: (N, H, W, 3) uint8, in the order of the predictions.
    """
    heading = title if rows else f"{title}: none"
    axes, corners = _sheet(images[list(rows)], heading, columns=GRID_COLUMNS, left=MARGIN, gap=56, below=2 * LINE + 24)
    middle, below = images.shape[2] * SCALE / 2, images.shape[1] * SCALE + 8
    for row, (x, y) in zip(rows, corners, strict=True):
        names = [_shortened(class_names[c]) for c in (predictions.label[row], predictions.prediction[row])]
        colour = GREEN if predictions.correct[row] else RED
        detail = f"{_percent(predictions.confidence[row])}   #{predictions.index[row]}"
        _write(axes, x + middle, y + below, f" {ARROW} ".join(names), colour=colour, size=6.8, weight="bold")
        _write(axes, x + middle, y + below + LINE, detail, colour=FAINT, size=6.5)
    _save(axes, path)


def draw_augmented(
    images: Pixels, row_names: Sequence[str], column_names: Sequence[str], path: Path, *, title: str
) -> None:
    """A sheet with a line per image and a column per epoch (or whatever the names say).

    images: (R, C, H, W, 3) uint8; R row_names, C column_names.
    """
    left = MARGIN + 10 * max(len(_plain(name)) for name in row_names) + 16
    tiles = images.reshape(-1, *images.shape[2:])
    axes, corners = _sheet(tiles, title, columns=len(column_names), left=left, gap=12, below=12, above=LINE + 8)
    height, width = images.shape[2] * SCALE, images.shape[3] * SCALE
    for column, name in enumerate(column_names):
        x, y = corners[column]
        _write(axes, x + width / 2, y - LINE, name, colour=FAINT, size=7)
    for row, name in enumerate(row_names):
        x, y = corners[row * len(column_names)]
        _write(axes, x - 14, y + height / 2 - LINE / 2, name, colour=INK, size=7, align="right")
    _save(axes, path)


def draw_confusion(matrix: npt.NDArray[np.int64], class_names: Sequence[str], path: Path, *, title: str) -> None:
    """The confusion matrix, true class by predicted class: colour is the share of the true class.

    Right answers (blue) and mistakes (red) have a scale each: on one scale the mistakes would all be white.
    matrix: (K, K) counts, rows true.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    is_right = np.eye(len(matrix), dtype=bool)
    worst = max(float(shares[~is_right].max(initial=0)), 1e-9)
    axes = _charts(title, width=8.6, height=8.2)[0]
    axes.imshow(np.where(is_right, shares, np.nan), cmap="Blues", vmin=0, vmax=1.25)
    axes.imshow(np.where(is_right | (matrix == 0), np.nan, shares), cmap="Reds", vmin=0, vmax=1.25 * worst)
    places, names = range(len(matrix)), [_plain(name) for name in class_names]
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)
    if len(matrix) <= MOST_COUNTED_CLASSES:
        _write_counts(axes, matrix, shares, worst)
    _save(axes, path)


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path, *, title: str) -> None:
    """Loss, accuracy and LR against the epoch, from the lines of a metrics.jsonl.

    Each row has `epoch` (passes done, fractions included) and some of `lr`, `<split>/loss` and
    `<split>/accuracy` for the splits train, val and test; nan makes a gap.
    """
    loss, accuracy, lr = _charts(title, width=9, height=9, ratios=(3, 3, 1.4))
    for split, colour in SPLIT_COLOURS.items():
        _draw_series(loss, rows, f"{split}/loss", colour, label="{name}, last {last:.3f}")
        _draw_series(accuracy, rows, f"{split}/accuracy", colour, label="{name}, last {last:.2%}")
    _draw_series(lr, rows, "lr", INK, label="")
    accuracy.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    loss.set(ylabel="loss")
    accuracy.set(ylabel="accuracy")
    lr.set(ylabel="LR", xlabel="epoch")
    for axes in (loss, accuracy):
        if axes.lines:
            axes.legend(frameon=False)
    _save(loss, path)


def draw_lr_range(
    lr: Sequence[float],
    loss: Sequence[float],
    smoothed_loss: Sequence[float],
    accuracy: Sequence[float],
    path: Path,
    *,
    title: str,
    suggestions: Mapping[str, float | None],
) -> None:
    """Loss and accuracy (0..1) against the LR, an entry per update; suggested LRs are marked where there are any."""
    loss_axes, accuracy_axes = _charts(title, width=9, height=6.5, ratios=(2, 1))
    loss_axes.plot(lr, loss, color=SPLIT_COLOURS["train"], linewidth=0.8, label="loss")
    loss_axes.plot(lr, smoothed_loss, color=BLUE, linewidth=2, label="smoothed")
    accuracy_axes.plot(lr, accuracy, color=SPLIT_COLOURS["train"], linewidth=0.8)
    for (name, suggested), style in zip(suggestions.items(), ("--", ":", "-."), strict=False):
        if suggested is not None:
            loss_axes.axvline(suggested, color=RED, linestyle=style, label=f"{_plain(name)}: {suggested:.3g}")
            accuracy_axes.axvline(suggested, color=RED, linestyle=style)
    if smoothed_loss:  # the divergence at the end would flatten all that matters
        lowest, first = min(smoothed_loss), smoothed_loss[0]
        loss_axes.set_ylim(lowest - 0.15 * (first - lowest) - 0.05, first + 0.5 * (first - lowest) + 0.05)
    accuracy_axes.set_xscale("log")
    accuracy_axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    loss_axes.set(ylabel="loss")
    accuracy_axes.set(ylabel="accuracy", xlabel="LR (log scale)")
    loss_axes.legend(frameon=False)
    _save(loss_axes, path)


def _sheet(
    tiles: Pixels, title: str, *, columns: int, left: int, gap: int, below: int, above: int = 0
) -> tuple["Axes", list[tuple[int, int]]]:
    """A page of the tiles (N, H, W, 3), line by line: axes in screen pixels, and each tile's upper left corner.

    left, gap, below, above: room for text beside the tiles, in screen pixels.
    """
    from matplotlib.figure import Figure

    height, width = tiles.shape[1] * SCALE, tiles.shape[2] * SCALE
    page_width = left + columns * (width + gap) - gap + MARGIN
    heading = textwrap.wrap(_plain(title), (page_width - 2 * MARGIN) // 14)
    top = MARGIN + len(heading) * (LINE + 6) + 10 + above
    page_height = top + math.ceil(len(tiles) / columns) * (height + below) + MARGIN // 2
    page = np.full((page_height, page_width, 3), 255, dtype=np.uint8)
    corners = [(left + i % columns * (width + gap), top + i // columns * (height + below)) for i in range(len(tiles))]
    for (x, y), tile in zip(corners, tiles, strict=True):
        page[y - 1 : y + height + 1, x - 1 : x + width + 1] = FRAME
        page[y : y + height, x : x + width] = tile.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    axes = Figure(figsize=(page_width / DPI, page_height / DPI), dpi=DPI).add_axes((0, 0, 1, 1))
    axes.imshow(page, extent=(0, page_width, page_height, 0), interpolation="nearest", aspect="auto")
    axes.axis("off")
    for number, line in enumerate(heading):
        axes.text(MARGIN, MARGIN + number * (LINE + 6), line, color=INK, fontsize=10, va="top")
    return axes, corners


def _charts(title: str, *, width: float, height: float, ratios: Sequence[float] = (1,)) -> list["Axes"]:
    """Empty axes one above the other, sharing x, under a title; sizes in inches."""
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
    """The metric's line, with dots while there are few of them; nothing if no row has it."""
    epochs = [row["epoch"] for row in rows if name in row]
    values = [row[name] for row in rows if name in row]
    if values:
        marker = "o" if len(values) <= 60 and name != "lr" else ""
        text = label.format(name=name.split("/")[0], last=values[-1])
        axes.plot(epochs, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=text)


def _write_counts(axes: "Axes", matrix: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], worst: float) -> None:
    """Each cell's count, and on the diagonal the percentage below it."""
    for (row, column), count in np.ndenumerate(matrix):
        is_right = row == column
        dark = shares[row, column] > (0.75 if is_right else 0.75 * worst)
        text = f"{count}\n{shares[row, column]:.1%}" if is_right else str(count)
        colour = "white" if dark and count else (INK if count else FAINT)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _write(
    axes: "Axes",
    x: float,
    y: float,
    text: str,
    *,
    colour: str,
    size: float,
    weight: str = "normal",
    align: str = "center",
) -> None:
    axes.text(x, y, _plain(text), color=colour, fontsize=size, fontweight=weight, ha=align, va="top")


def _save(axes: "Axes", path: Path) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, format="png", dpi=DPI)


def _plain(text: str) -> str:
    """The text as it stands: a dollar sign is no formula."""
    return text.replace("$", r"\$")


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + ELLIPSIS


def _percent(share: float) -> str:
    """One decimal, and never 100% for what is less."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
