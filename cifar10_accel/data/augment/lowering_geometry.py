"""Lowerings of transforms that move pixels: padding, crops, flips, shifts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from cifar10_accel.data.augment.canvas import COLUMNS, ROWS, Canvas, Colour, colour_of
from cifar10_accel.data.augment.lowering import (
    BOTH_AXES,
    Choice,
    Draws,
    DrawTable,
    ImageSpec,
    Lowering,
    Step,
    choice,
    fixed_params,
    reject,
    reject_two_sizes,
    uniform,
)


def _border_colour(transform: Any, spec: ImageSpec) -> Colour:
    """Return the fill colour of a constant border, rounded as by OpenCV."""
    fill = [transform.fill] * spec.channels if isinstance(transform.fill, int | float) else transform.fill
    dot = np.zeros((1, 1, spec.channels), spec.dtype)
    return colour_of(np.atleast_1d(cv2.copyMakeBorder(dot, 1, 0, 0, 0, cv2.BORDER_CONSTANT, value=fill)[0, 0]))


def _pad(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    random = getattr(transform, "position", "") == "random"
    return _padding(transform, spec, table, pads=fixed_params(transform, spec), random=random)


def _padding(
    transform: Any, spec: ImageSpec, table: DrawTable, *, pads: dict[str, int], random: bool
) -> tuple[Step, ImageSpec]:
    """Pad the image; `random`: a draw divides the padding between the two sides of each axis."""
    before = pads["pad_top"], pads["pad_left"]
    total = before[ROWS] + pads["pad_bottom"], before[COLUMNS] + pads["pad_right"]
    grown = replace(spec, height=spec.height + total[ROWS], width=spec.width + total[COLUMNS])
    reject_two_sizes(transform, spec, grown)
    slots = [table.reserve_integer(0, total[axis]) for axis in BOTH_AXES] if random else []
    border, colour = transform.border_mode, _border_colour(transform, spec)

    def step(canvas: Canvas, draws: Draws) -> None:
        for axis in BOTH_AXES:
            length = grown.length(axis)
            if random:
                position = canvas.count(length) - draws.integer[slots[axis]][:, None]
                canvas.take_bordered(axis, position, border=border, colour=colour)
            else:
                canvas.pad(axis, before[axis], length, border=border, colour=colour)

    return step, grown


def _crop(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    """Lower RandomCrop, CenterCrop and Crop, including their padding."""
    params = fixed_params(transform, spec)
    left, top, right, bottom = params["crop_coords"]
    random = type(transform).__name__ == "RandomCrop"
    padded, pad = spec, None
    if params["pad_params"]:
        random_pad = transform.pad_position == "random"
        if random_pad and type(transform).__name__ == "Crop":
            reject(transform, "pad_position='random'")
        pad, padded = _padding(transform, spec, table, pads=params["pad_params"], random=random_pad)
    if bottom > padded.height or right > padded.width:
        reject(transform, "reaches beyond the image")
    cropped = replace(spec, height=bottom - top, width=right - left)
    reject_two_sizes(transform, spec, cropped)
    largest_offsets = [padded.length(axis) - cropped.length(axis) for axis in BOTH_AXES]
    slots = [table.reserve_integer(0, largest) for largest in largest_offsets] if random else []

    def step(canvas: Canvas, draws: Draws) -> None:
        if pad:
            pad(canvas, draws)
        for axis, fixed in ((ROWS, top), (COLUMNS, left)):
            first = draws.integer[slots[axis]][:, None] if random else fixed
            canvas.take(axis, canvas.count(cropped.length(axis)) + first)

    return step, cropped


def _crop_and_pad(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    """Lower CropAndPad with fixed amounts and without resizing."""
    amounts = np.asarray(transform.percent if transform.px is None else transform.px)
    if amounts.shape not in ((), (4,)) or transform.p < 1:
        reject(transform, "random amounts")
    if isinstance(transform.fill, tuple):
        reject(transform, "random fill")
    params = fixed_params(transform, spec)
    height, width = params["result_shape"]
    if transform.keep_size and (height, width) != (spec.height, spec.width):
        reject(transform, "keep_size=True resizes")
    left, top, right, bottom = params["crop_params"] or (0, 0, spec.width, spec.height)
    pad_top, _, pad_left, _ = params["pad_params"] or (0, 0, 0, 0)
    colour = _border_colour(transform, spec)

    def step(canvas: Canvas, draws: Draws) -> None:
        for axis, start, stop, pad, length in (
            (ROWS, top, bottom, pad_top, height),
            (COLUMNS, left, right, pad_left, width),
        ):
            canvas.take(axis, canvas.count(stop - start) + start)
            canvas.pad(axis, pad, length, border=transform.border_mode, colour=colour)

    return step, replace(spec, height=height, width=width)


def _flip(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    axis = ROWS if type(transform).__name__ == "VerticalFlip" else COLUMNS
    choose = choice(transform, table)
    return _mirror(axis, spec, choose), spec


def _alternating_flip(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    def choose(draws: Draws, new: Tensor, old: Tensor | float) -> Tensor:
        return torch.where((draws.keys & 1 > 0)[:, None], new, old)

    return _mirror(COLUMNS, spec, choose), spec


def _mirror(axis: int, spec: ImageSpec, choose: Choice) -> Step:
    def step(canvas: Canvas, draws: Draws) -> None:
        lines = canvas.count(spec.length(axis))
        canvas.take(axis, choose(draws, spec.length(axis) - 1 - lines, lines))

    return step


def _translate(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    """Lower Affine and ShiftScaleRotate that only shift, which Albumentations does by whole pixels."""
    ranges = [*transform.scale.values(), *transform.shear.values(), transform.rotate]
    neutral = [(1, 1)] * len(transform.scale) + [(0, 0)] * (len(transform.shear) + 1)
    if [tuple(given) for given in ranges] != neutral or transform.fit_output:
        reject(transform, "more than a shift")
    if transform.interpolation not in (cv2.INTER_NEAREST, cv2.INTER_LINEAR):
        reject(transform, "interpolation other than nearest and linear")  # OpenCV's cubic one is inexact at borders
    choose = choice(transform, table)
    across = _shift(transform, "x", spec.width, table)
    down = _shift(transform, "y", spec.height, table)
    border, colour = transform.border_mode, _border_colour(transform, spec)

    def step(canvas: Canvas, draws: Draws) -> None:
        for axis, shift in ((ROWS, down), (COLUMNS, across)):
            lines = canvas.count(spec.length(axis))
            position = choose(draws, lines - shift(draws)[:, None], lines)
            canvas.take_bordered(axis, position, border=border, colour=colour)

    return step, spec


def _shift(transform: Any, name: str, length: int, table: DrawTable) -> Callable[[Draws], Tensor]:
    """Reserve a shift; return a function that gives it in whole pixels to the right or down: (N,) int64."""
    if transform.translate_px is not None:
        slot = table.reserve_integer(*map(int, transform.translate_px[name]))
        return lambda draws: draws.integer[slot]
    slot, (low, high) = table.reserve(), transform.translate_percent[name]
    return lambda draws: (uniform(draws.raw[slot], low, high) * length).long()  # towards zero, as int() does


GEOMETRY: dict[str, Lowering] = {
    "Pad": _pad,
    "PadIfNeeded": _pad,
    "RandomCrop": _crop,
    "CenterCrop": _crop,
    "Crop": _crop,
    "CropAndPad": _crop_and_pad,
    "HorizontalFlip": _flip,
    "VerticalFlip": _flip,
    "AlternatingFlip": _alternating_flip,
    "Affine": _translate,
    "ShiftScaleRotate": _translate,
}
