"""The lowerings of transforms that move pixels: borders, crops, flips, shifts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from cifar10_accel.data.canvas import COLUMNS, ROWS, Canvas, Colour, colour_of
from cifar10_accel.data.lowering import (
    BOTH_AXES,
    Bookings,
    Choice,
    Drawn,
    Form,
    Lowering,
    Step,
    ask,
    choice,
    refuse,
    refuse_two_sizes,
    uniform,
)


def _border_colour(transform: Any, form: Form) -> Colour:
    """The fill of a constant border, rounded as OpenCV does."""
    fill = [transform.fill] * 3 if isinstance(transform.fill, float) else transform.fill
    dot = np.zeros((1, 1, 3), form.dtype)
    return colour_of(cv2.copyMakeBorder(dot, 1, 0, 0, 0, cv2.BORDER_CONSTANT, value=fill)[0, 0])


def _pad(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    random = getattr(transform, "position", "") == "random"
    return _padding(transform, form, bookings, pads=ask(transform, form), random=random)


def _padding(
    transform: Any, form: Form, bookings: Bookings, *, pads: dict[str, int], random: bool
) -> tuple[Step, Form]:
    """A border around the image; `random`: a draw shares it out between the two sides of each axis."""
    before = pads["pad_top"], pads["pad_left"]
    total = before[ROWS] + pads["pad_bottom"], before[COLUMNS] + pads["pad_right"]
    grown = replace(form, height=form.height + total[ROWS], width=form.width + total[COLUMNS])
    refuse_two_sizes(transform, form, grown)
    slots = [bookings.book_integer(0, total[axis]) for axis in BOTH_AXES] if random else []
    border, colour = transform.border_mode, _border_colour(transform, form)

    def step(canvas: Canvas, drawn: Drawn) -> None:
        for axis in BOTH_AXES:
            length = grown.length(axis)
            if random:
                position = canvas.count(length) - drawn.integer[slots[axis]][:, None]
                canvas.take_bordered(axis, position, border=border, colour=colour)
            else:
                canvas.pad(axis, before[axis], length, border=border, colour=colour)

    return step, grown


def _crop(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    """RandomCrop, CenterCrop and Crop, with padding where they ask for it."""
    params = ask(transform, form)
    left, top, right, bottom = params["crop_coords"]
    random = type(transform).__name__ == "RandomCrop"
    padded, pad = form, None
    if params["pad_params"]:
        random_pad = transform.pad_position == "random"
        if random_pad and type(transform).__name__ == "Crop":
            refuse(transform, "pad_position='random'")
        pad, padded = _padding(transform, form, bookings, pads=params["pad_params"], random=random_pad)
    if bottom > padded.height or right > padded.width:
        refuse(transform, "reaches beyond the image")
    cropped = replace(form, height=bottom - top, width=right - left)
    refuse_two_sizes(transform, form, cropped)
    rooms = [padded.length(axis) - cropped.length(axis) for axis in BOTH_AXES]
    slots = [bookings.book_integer(0, room) for room in rooms] if random else []

    def step(canvas: Canvas, drawn: Drawn) -> None:
        if pad:
            pad(canvas, drawn)
        for axis, fixed in ((ROWS, top), (COLUMNS, left)):
            first = drawn.integer[slots[axis]][:, None] if random else fixed
            canvas.take(axis, canvas.count(cropped.length(axis)) + first)

    return step, cropped


def _crop_and_pad(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    """CropAndPad by fixed amounts that needs no resizing."""
    amounts = np.asarray(transform.percent if transform.px is None else transform.px)
    if amounts.shape not in ((), (4,)) or transform.p < 1:
        refuse(transform, "random amounts")
    if isinstance(transform.fill, tuple):
        refuse(transform, "random fill")
    params = ask(transform, form)
    height, width = params["result_shape"]
    if transform.keep_size and (height, width) != (form.height, form.width):
        refuse(transform, "keep_size=True resizes")
    left, top, right, bottom = params["crop_params"] or (0, 0, form.width, form.height)
    pad_top, _, pad_left, _ = params["pad_params"] or (0, 0, 0, 0)
    colour = _border_colour(transform, form)

    def step(canvas: Canvas, drawn: Drawn) -> None:
        for axis, start, stop, pad, length in (
            (ROWS, top, bottom, pad_top, height),
            (COLUMNS, left, right, pad_left, width),
        ):
            canvas.take(axis, canvas.count(stop - start) + start)
            canvas.pad(axis, pad, length, border=transform.border_mode, colour=colour)

    return step, replace(form, height=height, width=width)


def _flip(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    axis = ROWS if type(transform).__name__ == "VerticalFlip" else COLUMNS
    choose = choice(transform, bookings)
    return _mirror(axis, form, choose), form


def _alternating_flip(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    def choose(drawn: Drawn, new: Tensor, old: Tensor | float) -> Tensor:
        return torch.where((drawn.keys & 1 > 0)[:, None], new, old)

    return _mirror(COLUMNS, form, choose), form


def _mirror(axis: int, form: Form, choose: Choice) -> Step:
    def step(canvas: Canvas, drawn: Drawn) -> None:
        lines = canvas.count(form.length(axis))
        canvas.take(axis, choose(drawn, form.length(axis) - 1 - lines, lines))

    return step


def _translate(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    """Affine and ShiftScaleRotate that do nothing but shift, which Albumentations does by whole pixels."""
    ranges = [*transform.scale.values(), *transform.shear.values(), transform.rotate]
    neutral = [(1, 1)] * len(transform.scale) + [(0, 0)] * (len(transform.shear) + 1)
    if [tuple(given) for given in ranges] != neutral or transform.fit_output:
        refuse(transform, "more than a shift")
    if transform.interpolation not in (cv2.INTER_NEAREST, cv2.INTER_LINEAR):
        refuse(transform, "interpolation other than nearest and linear")  # OpenCV's cubic one is inexact at borders
    choose = choice(transform, bookings)
    across = _shift(transform, "x", form.width, bookings)
    down = _shift(transform, "y", form.height, bookings)
    border, colour = transform.border_mode, _border_colour(transform, form)

    def step(canvas: Canvas, drawn: Drawn) -> None:
        for axis, shift in ((ROWS, down), (COLUMNS, across)):
            lines = canvas.count(form.length(axis))
            position = choose(drawn, lines - shift(drawn)[:, None], lines)
            canvas.take_bordered(axis, position, border=border, colour=colour)

    return step, form


def _shift(transform: Any, name: str, length: int, bookings: Bookings) -> Callable[[Drawn], Tensor]:
    """Books a shift; gives the whole pixels to the right or down, (N,) int64."""
    if transform.translate_px is not None:
        slot = bookings.book_integer(*map(int, transform.translate_px[name]))
        return lambda drawn: drawn.integer[slot]
    slot, (low, high) = bookings.book(), transform.translate_percent[name]
    return lambda drawn: (uniform(drawn.raw[slot], low, high) * length).long()  # towards zero, as int() does


GEOMETRY: dict[str, Lowering] = {
    "Pad": _pad, "PadIfNeeded": _pad, "RandomCrop": _crop, "CenterCrop": _crop, "Crop": _crop,
    "CropAndPad": _crop_and_pad, "HorizontalFlip": _flip, "VerticalFlip": _flip, "AlternatingFlip": _alternating_flip,
    "Affine": _translate, "ShiftScaleRotate": _translate,
}  # fmt: skip
