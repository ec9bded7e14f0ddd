"""Building blocks for the lowerings of single transforms.

A transform is lowered to a step: a function of the canvas and the draws of the batch. The draws are reserved in the
order in which Albumentations 2.0.8 makes them. Sizes and other fixed parameters are not computed here, but taken from
the transform's own methods.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from cifar10_accel.data.augment.canvas import COLUMNS, ROWS, Canvas, on_device
from cifar10_accel.data.augment.counted_random import counter
from cifar10_accel.randomness import DRAW_BITS, below, draws, threshold

BOTH_AXES = (ROWS, COLUMNS)


class Draws(NamedTuple):
    """The draws of a batch: K reserved slots, N images."""

    raw: Tensor  # (K, N) int64 in 0 .. 2**32 - 1
    integer: Tensor  # (K, N) int64, in the range reserved for the slot
    keys: Tensor  # (N,) int64


Step = Callable[[Canvas, Draws], None]


class NotLowerable(Exception):
    """A transform (named in the message) has no batched form, so only Albumentations can apply it."""


@dataclass(frozen=True)
class ImageSpec:
    """Shape and dtype of the images between two transforms of a pipeline."""

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]

    def length(self, axis: int) -> int:
        """Return the number of lines along an axis."""
        return self.height if axis == ROWS else self.width


class DrawTable:
    """Table of the draws that a pipeline makes for each image, reserved when the pipeline is lowered.

    A reserved draw is a slot: a row of the tensors that `draw_all` computes for a batch at once.
    """

    def __init__(self) -> None:
        self._counters: list[int] = []
        self._lows: list[int] = []
        self._spans: list[int] = []
        self._node = 0
        self._calls = 0

    def start(self, node: int) -> None:
        """Start the reservations of another node of the pipeline."""
        self._node, self._calls = node, 0

    def reserve(self) -> int:
        """Reserve the node's next call for a raw draw and return its slot."""
        return self.reserve_array(1)[0]

    def reserve_array(self, count: int) -> list[int]:
        """Reserve the first `count` elements of the node's next call for raw draws and return their slots."""
        return self.reserve_integers(count, 0, 0)

    def reserve_integer(self, low: int, high: int) -> int:
        """Reserve the node's next call for an integer in low .. high and return its slot."""
        return self.reserve_integers(1, low, high)[0]

    def reserve_integers(self, count: int, low: int, high: int) -> list[int]:
        """Reserve the first `count` elements of the node's next call for integers in low .. high, return the slots."""
        slots = [len(self._counters) + element for element in range(count)]
        self._counters += [counter(self._node, self._calls, element) for element in range(count)]
        self._lows += [low] * count
        self._spans += [high - low + 1] * count
        self._calls += 1
        return slots

    def draw_all(self, keys: Tensor) -> Draws:
        """Compute all reserved draws of all images. keys: (N,) int64."""
        counters, lows, spans = (
            on_device(tuple(values), torch.int64, keys.device)[:, None]
            for values in (self._counters, self._lows, self._spans)
        )
        raw = draws(keys ^ counters, 0)
        return Draws(raw, lows + below(raw, spans), keys)


Lowering = Callable[[Any, ImageSpec, DrawTable], tuple[Step, ImageSpec]]
Choice = Callable[[Draws, Tensor, Tensor | float], Tensor]


def reject(transform: Any, reason: str) -> NoReturn:
    """Raise `NotLowerable` with the transform's name and the reason."""
    raise NotLowerable(f"{type(transform).__name__} ({reason})")


def reject_two_sizes(transform: Any, before: ImageSpec, after: ImageSpec) -> None:
    """Reject a transform that would change the size of some images of a batch only."""
    if transform.p < 1 and before != after:
        reject(transform, f"p={transform.p:g} leaves images of two sizes")


def fixed_params(transform: Any, spec: ImageSpec) -> dict[str, Any]:
    """Return the parameters that the transform itself computes for images of this size."""
    shape = (spec.height, spec.width, spec.channels)
    return cast(dict[str, Any], transform.get_params_dependent_on_data({"shape": shape}, {}))


def choice(transform: Any, table: DrawTable) -> Choice:
    """Reserve the draw for the transform's p; return choose(draws, new, old), which selects per image."""
    if transform.p >= 1:
        return lambda draws, new, old: new
    slot, limit = table.reserve(), threshold(transform.p)
    return lambda draws, new, old: torch.where(per_image(draws.raw[slot] < limit, new), new, old)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, ...) with as many axes as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def uniform(raw: Tensor, low: float, high: float) -> Tensor:
    """Return uniform float64 numbers in low .. high, by the operations of `random.Random.uniform`: (N,)."""
    return low + (high - low) * (raw.double() / (1 << DRAW_BITS))
