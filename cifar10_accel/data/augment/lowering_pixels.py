"""Lowerings of transforms that change pixel values: cutout, colour, normalisation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar10_accel.data.augment.canvas import ROWS, Canvas, colour_of, on_device
from cifar10_accel.data.augment.lowering import (
    BOTH_AXES,
    Draws,
    DrawTable,
    ImageSpec,
    Lowering,
    Step,
    choice,
    per_image,
    reject,
    uniform,
)
from cifar10_accel.randomness import below

RGB_TO_GRAY = (9798, 19235, 3735)  # OpenCV's weights, in 1 / 2**15


def _coarse_dropout(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    if isinstance(transform.fill, str):
        reject(transform, f"fill={transform.fill!r}")
    dot = np.zeros((1, 1, spec.channels), spec.dtype)
    colour = colour_of(transform.apply(dot, holes=np.array([[0, 0, 1, 1]]), seed=0)[0, 0])
    choose = choice(transform, table)
    fewest, most = transform.num_holes_range
    number_slot = table.reserve_integer(fewest, most)
    sizes = [_hole_sizes(transform, axis, spec.length(axis), table) for axis in BOTH_AXES]
    start_slots = [table.reserve_array(most) for _ in BOTH_AXES]

    def step(canvas: Canvas, draws: Draws) -> None:
        for hole in range(most):
            inside = []
            for axis in BOTH_AXES:
                size, length = sizes[axis](draws, hole), spec.length(axis)
                start = below(draws.raw[start_slots[axis][hole]], length - size + 1)
                offset = canvas.count(length) - start[:, None]
                inside.append((offset >= 0) & (offset < size[:, None]))
            rows, columns = inside
            if hole >= fewest:
                rows = rows & (draws.integer[number_slot] > hole)[:, None]
            canvas.paint(choose(draws, rows, False), columns, colour)

    return step, spec


def _hole_sizes(transform: Any, axis: int, length: int, table: DrawTable) -> Callable[[Draws, int], Tensor]:
    """Reserve the sizes of all holes along an axis; return a function that gives that of one hole: (N,) int64."""
    low, high = transform.hole_height_range if axis == ROWS else transform.hole_width_range
    most = transform.num_holes_range[1]
    if transform.hole_height_range[1] >= 1:  # then both ranges are in pixels
        slots = table.reserve_integers(most, int(low), int(min(high, length)))
        return lambda draws, hole: draws.integer[slots[hole]]
    slots = table.reserve_array(most)
    return lambda draws, hole: (length * uniform(draws.raw[slots[hole]], low, high)).long()


def _brightness_contrast(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    if spec.dtype != np.uint8:
        reject(transform, "after Normalize")
    if transform.ensure_safe_range:
        reject(transform, "ensure_safe_range=True")
    choose = choice(transform, table)
    contrast_slot, brightness_slot = table.reserve(), table.reserve()

    def step(canvas: Canvas, draws: Draws) -> None:
        pixels = canvas.flush()
        factor = 1.0 + uniform(draws.raw[contrast_slot], *transform.contrast_limit)
        offset = uniform(draws.raw[brightness_slot], *transform.brightness_limit)
        if transform.brightness_by_max:
            offset = offset * 255
        else:
            offset = offset * (pixels.sum((1, 2, 3)).double() / pixels[0].numel())
        factor = per_image(choose(draws, factor, 1.0).float(), pixels)
        offset = per_image(choose(draws, offset, 0.0).float(), pixels)
        canvas.replace(pixels.float().mul_(factor).add_(offset).clamp_(0, 255).to(torch.uint8))

    return step, spec


def _gray(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    if spec.dtype != np.uint8:
        reject(transform, "after Normalize")
    if transform.method != "weighted_average" or (spec.channels, transform.num_output_channels) != (3, 3):
        reject(transform, "other than method='weighted_average' from 3 to 3 channels")
    choose = choice(transform, table)

    def step(canvas: Canvas, draws: Draws) -> None:
        pixels = canvas.flush()
        red, green, blue = pixels.int().unbind(-1)
        gray = (red * RGB_TO_GRAY[0] + green * RGB_TO_GRAY[1] + blue * RGB_TO_GRAY[2] + (1 << 14)) >> 15
        canvas.replace(choose(draws, gray.to(torch.uint8)[..., None].expand_as(pixels), pixels).contiguous())

    return step, spec


def normalized(pixels: Tensor, *, mean: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> Tensor:
    """Return (pixels - mean) * scale per channel.

    Args:
        pixels: (N, H, W, C) uint8.
        mean: (C,) or ().
        scale: (C,) or ().

    Returns:
        (N, H, W, C) float32.
    """
    lines = pixels.flatten(2)  # (N, H, W*C): operations on long rows are several times faster than on rows of C
    width, num_channels = pixels.shape[2:]

    def along_a_line(values: npt.NDArray[np.float32]) -> Tensor:
        channels = np.broadcast_to(values, num_channels).tolist()
        return on_device(tuple(channels * width), torch.float32, pixels.device)

    return lines.float().sub_(along_a_line(mean)).mul_(along_a_line(scale)).view(pixels.shape)


def _normalize(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    if spec.dtype != np.uint8 or transform.normalization != "standard" or transform.p < 1:
        reject(transform, "other than once, always, normalization='standard'")

    def step(canvas: Canvas, draws: Draws) -> None:
        canvas.replace(normalized(canvas.flush(), mean=transform.mean_np, scale=transform.denominator))

    return step, replace(spec, dtype=np.dtype(np.float32))


def _to_tensor(transform: Any, spec: ImageSpec, table: DrawTable) -> tuple[Step, ImageSpec]:
    return lambda canvas, draws: None, spec


PIXELS: dict[str, Lowering] = {
    "CoarseDropout": _coarse_dropout,
    "RandomBrightnessContrast": _brightness_contrast,
    "ToGray": _gray,
    "Normalize": _normalize,
    "ToTensorV2": _to_tensor,
}
