"""Batch of images whose pixels are moved by a single gather for any number of transforms.

A `Canvas` stores, for each image and axis, the source row (column) of each row (column) of the result. Crops, flips,
shifts, borders and painted rectangles only change these indices; `flush` then moves all pixels by one gather. Painted
pixels are gathered from a palette of colours appended to the source pixels. No operation waits for the device.

Shapes: N images, H rows, W columns, L lines of one axis (H or W), C channels. A leading 1 in place of N means: the same
for all images.
"""

import functools
import itertools
from typing import Any

import cv2
import numpy.typing as npt
import torch
from torch import Tensor

ROWS, COLUMNS = 0, 1
Colour = tuple[float, ...]  # of each channel, in the value range of the image


class Canvas:
    """N images and their pending changes. images: (N, H, W, C), contiguous."""

    def __init__(self, images: Tensor) -> None:
        self.replace(images)

    def replace(self, images: Tensor) -> None:
        """Replace the images and discard all pending changes. images: (N, H, W, C), contiguous."""
        self._pixels = images
        self._lines = [self.count(images.shape[1]), self.count(images.shape[2])]  # source line of each line, (1|N, L)
        self._painted: list[tuple[Tensor, Tensor]] = []  # of each rectangle: rows (1|N, H) and columns (1|N, W)
        self._palette: list[Colour] = []
        self._pending = False

    def count(self, length: int) -> Tensor:
        """Return 0 .. length - 1 as (1, length) int64."""
        return _count(length, self._pixels.device)

    def take(self, axis: int, position: Tensor) -> None:
        """Replace line i by line `position[:, i]`. position: (1|N, L) int64, all inside the image."""
        self._pending = True
        self._lines[axis] = _pick(self._lines[axis], position)
        self._painted = [
            (_pick(rows, position), columns) if axis == ROWS else (rows, _pick(columns, position))
            for rows, columns in self._painted
        ]

    def take_bordered(self, axis: int, position: Tensor, *, border: int, colour: Colour) -> None:
        """As `take`, but positions outside the image are handled by OpenCV's border mode (`colour` if constant)."""
        self._take_or_paint(axis, *_bordered(position, self._lines[axis].shape[1], border), colour)

    def pad(self, axis: int, before: int, length: int, *, border: int, colour: Colour) -> None:
        """Pad an axis to `length` lines, `before` of them in front of the image."""
        table = _padded_positions(before, length, self._lines[axis].shape[1], border, self._pixels.device)
        self._take_or_paint(axis, *table, colour)

    def _take_or_paint(self, axis: int, position: Tensor, painted: Tensor | None, colour: Colour) -> None:
        self.take(axis, position)
        if painted is not None:
            everywhere = self.count(self._lines[1 - axis].shape[1]) >= 0
            self.paint(*((painted, everywhere) if axis == ROWS else (everywhere, painted)), colour)

    def paint(self, rows: Tensor, columns: Tensor, colour: Colour) -> None:
        """Fill the intersection of rows (1|N, H) bool and columns (1|N, W) bool."""
        self._pending = True
        # `_index` takes the largest number: colours are above all pixels, later colours above earlier ones.
        number = self._pixels.shape[:3].numel() + len(self._palette)
        self._palette.append(colour)
        self._painted.append((rows.int() * number, -columns.int()))

    def flush(self) -> Tensor:
        """Apply the pending changes and return the images: (N, H, W, C), contiguous."""
        if self._pending:
            index = self._index()
            source = self._pixels.flatten(0, 2)  # (N*H*W, C)
            if self._palette:
                colours = on_device(tuple(itertools.chain(*self._palette)), source.dtype, source.device)
                source = torch.cat([source, colours.view(-1, source.shape[1])])
            self.replace(source.index_select(0, index.flatten()).view(*index.shape, source.shape[1]))
        return self._pixels

    def _index(self) -> Tensor:
        """Return the number of the source pixel (or colour) of each pixel: (N, H, W) int32."""
        num_images, height, width = self._pixels.shape[:3]
        first = torch.arange(0, num_images * height * width, height * width, device=self._pixels.device)
        rows = (self._lines[ROWS] * width + first[:, None]).int()  # int32 is twice as fast as int64
        index = rows[:, :, None] + self._lines[COLUMNS].int()[:, None, :]
        for painted_rows, painted_columns in self._painted:
            # Bitwise: the number of the colour inside (columns are -1 there, all ones), 0 outside.
            index = torch.maximum(index, painted_rows[:, :, None] & painted_columns[:, None, :])
        return index


@functools.lru_cache(maxsize=256)
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values as a tensor on the device; cached, because a copy to a GPU makes the host wait."""
    return torch.tensor(values, dtype=dtype).to(device)


@functools.lru_cache(maxsize=256)
def _count(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, device=device)[None]


def colour_of(pixel: npt.NDArray[Any]) -> Colour:
    """Return a pixel (C,) as a colour."""
    return tuple(pixel.tolist())


def _pick(lines: Tensor, position: Tensor) -> Tensor:
    """Return lines[n, position[n, i]] for lines (1|N, L) and position (1|N, L'): (1|N, L')."""
    if len(lines) == 1:
        return lines[0].index_select(0, position.flatten()).view(position.shape)  # far faster than lines[0][position]
    return torch.gather(lines, 1, position.expand(len(lines), -1))


def _bordered(position: Tensor, length: int, border: int) -> tuple[Tensor, Tensor | None]:
    """Return positions in 0 .. length - 1 and, for a constant border, a mask of those that were outside."""
    if border == cv2.BORDER_CONSTANT:
        inside = position.clamp(0, length - 1)
        return inside, inside != position
    return _moved_inside(position, length, border), None


@functools.lru_cache(maxsize=256)
def _padded_positions(
    before: int, length: int, old_length: int, border: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return `_bordered` for an axis padded by fixed amounts, cached."""
    return _bordered(_count(length, device) - before, old_length, border)


def _moved_inside(position: Tensor, length: int, border: int) -> Tensor:
    """Return positions in 0 .. length - 1, mapped as by OpenCV's `borderInterpolate`."""
    if border == cv2.BORDER_REPLICATE:
        return position.clamp(0, length - 1)
    if border == cv2.BORDER_WRAP:
        return position % length
    if border == cv2.BORDER_REFLECT:  # cba|abc|cba
        position = position % (2 * length)
        return torch.minimum(position, 2 * length - 1 - position)
    assert border == cv2.BORDER_REFLECT_101, border  # dcb|abcd|cba
    period = max(1, 2 * (length - 1))
    position = position % period
    return torch.minimum(position, period - position)
