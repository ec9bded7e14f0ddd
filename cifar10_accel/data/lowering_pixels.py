"""The lowerings of transforms that change pixels where they are: cutout, colour, normalisation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar10_accel.data.canvas import ROWS, Canvas, colour_of, on_device
from cifar10_accel.data.lowering import (
    BOTH_AXES,
    Bookings,
    Drawn,
    Form,
    Lowering,
    Step,
    choice,
    per_image,
    refuse,
    uniform,
)
from cifar10_accel.randomness import below

RGB_TO_GRAY = (9798, 19235, 3735)  # OpenCV's weights, in 1 / 2**15


def _coarse_dropout(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    if isinstance(transform.fill, str):
        refuse(transform, f"fill={transform.fill!r}")
    dot = np.zeros((1, 1, 3), form.dtype)
    colour = colour_of(transform.apply(dot, holes=np.array([[0, 0, 1, 1]]), seed=0)[0, 0])
    choose = choice(transform, bookings)
    fewest, most = transform.num_holes_range
    number_slot = bookings.book_integer(fewest, most)
    sizes = [_hole_sizes(transform, axis, form.length(axis), bookings) for axis in BOTH_AXES]
    start_slots = [bookings.book_array(most) for _ in BOTH_AXES]

    def step(canvas: Canvas, drawn: Drawn) -> None:
        for hole in range(most):
            inside = []
            for axis in BOTH_AXES:
                size, length = sizes[axis](drawn, hole), form.length(axis)
                start = below(drawn.raw[start_slots[axis][hole]], length - size + 1)
                offset = canvas.count(length) - start[:, None]
                inside.append((offset >= 0) & (offset < size[:, None]))
            rows, columns = inside
            if hole >= fewest:
                rows = rows & (drawn.integer[number_slot] > hole)[:, None]
            canvas.paint(choose(drawn, rows, False), columns, colour)

    return step, form


def _hole_sizes(transform: Any, axis: int, length: int, bookings: Bookings) -> Callable[[Drawn, int], Tensor]:
    """Books the sizes of all holes along an axis; gives that of one hole, (N,) int64."""
    low, high = transform.hole_height_range if axis == ROWS else transform.hole_width_range
    most = transform.num_holes_range[1]
    if transform.hole_height_range[1] >= 1:  # then both ranges are in pixels
        slots = bookings.book_integers(most, int(low), int(min(high, length)))
        return lambda drawn, hole: drawn.integer[slots[hole]]
    slots = bookings.book_array(most)
    return lambda drawn, hole: (length * uniform(drawn.raw[slots[hole]], low, high)).long()


def _brightness_contrast(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    if form.dtype != np.uint8:
        refuse(transform, "after Normalize")
    if transform.ensure_safe_range:
        refuse(transform, "ensure_safe_range=True")
    choose = choice(transform, bookings)
    contrast_slot, brightness_slot = bookings.book(), bookings.book()

    def step(canvas: Canvas, drawn: Drawn) -> None:
        pixels = canvas.flush()
        factor = 1.0 + uniform(drawn.raw[contrast_slot], *transform.contrast_limit)
        offset = uniform(drawn.raw[brightness_slot], *transform.brightness_limit)
        if transform.brightness_by_max:
            offset = offset * 255
        else:
            offset = offset * (pixels.sum((1, 2, 3)).double() / pixels[0].numel())
        factor = per_image(choose(drawn, factor, 1.0).float(), pixels)
        offset = per_image(choose(drawn, offset, 0.0).float(), pixels)
        canvas.replace(pixels.float().mul_(factor).add_(offset).clamp_(0, 255).to(torch.uint8))

    return step, form


def _gray(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    if form.dtype != np.uint8:
        refuse(transform, "after Normalize")
    if transform.method != "weighted_average" or transform.num_output_channels != 3:
        refuse(transform, "other than method='weighted_average' to 3 channels")
    choose = choice(transform, bookings)

    def step(canvas: Canvas, drawn: Drawn) -> None:
        pixels = canvas.flush()
        red, green, blue = pixels.int().unbind(-1)
        gray = (red * RGB_TO_GRAY[0] + green * RGB_TO_GRAY[1] + blue * RGB_TO_GRAY[2] + (1 << 14)) >> 15
        canvas.replace(choose(drawn, gray.to(torch.uint8)[..., None].expand_as(pixels), pixels).contiguous())

    return step, form


def normalized(pixels: Tensor, *, mean: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> Tensor:
    """(pixels - mean) * scale per channel. pixels: (N, H, W, 3) uint8 -> float32; mean, scale: (3,) or ()."""
    lines = pixels.flatten(2)  # (N, H, W*3): long rows are several times as fast as rows of 3
    width = pixels.shape[2]

    def along_a_line(values: npt.NDArray[np.float32]) -> Tensor:
        channels = np.broadcast_to(values, 3).tolist()
        return on_device(tuple(channels * width), torch.float32, pixels.device)

    return lines.float().sub_(along_a_line(mean)).mul_(along_a_line(scale)).view(pixels.shape)


def _normalize(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    if form.dtype != np.uint8 or transform.normalization != "standard" or transform.p < 1:
        refuse(transform, "other than once, always, normalization='standard'")

    def step(canvas: Canvas, drawn: Drawn) -> None:
        canvas.replace(normalized(canvas.flush(), mean=transform.mean_np, scale=transform.denominator))

    return step, replace(form, dtype=np.dtype(np.float32))


def _to_tensor(transform: Any, form: Form, bookings: Bookings) -> tuple[Step, Form]:
    return lambda canvas, drawn: None, form


PIXELS: dict[str, Lowering] = {
    "CoarseDropout": _coarse_dropout, "RandomBrightnessContrast": _brightness_contrast, "ToGray": _gray,
    "Normalize": _normalize, "ToTensorV2": _to_tensor,
}  # fmt: skip
