"""What the lowerings of single transforms are made of.

A transform is lowered to a step, a function of the canvas and the draws of the batch. The draws are
booked in the order in which Albumentations 2.0.8 makes them. Sizes and other fixed parameters are not
worked out again: the transform is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from cifar10_accel.data.augment import counter
from cifar10_accel.data.canvas import COLUMNS, ROWS, Canvas, on_device
from cifar10_accel.randomness import DRAW_BITS, below, draws, threshold

BOTH_AXES = (ROWS, COLUMNS)


class Drawn(NamedTuple):
    """The draws of a batch: K booked slots, N images."""

    raw: Tensor  # (K, N) int64 in 0 .. 2**32 - 1
    integer: Tensor  # (K, N) int64, in the range booked for the slot
    keys: Tensor  # (N,) int64


Step = Callable[[Canvas, Drawn], None]


class NotLowerable(Exception):
    """A transform (the message names it) that only Albumentations itself can carry out."""


@dataclass(frozen=True)
class Form:
    """What an image is at some place of the pipeline."""

    height: int
    width: int
    dtype: np.dtype[Any]

    def length(self, axis: int) -> int:
        """Number of lines of an axis."""
        return self.height if axis == ROWS else self.width


class Bookings:
    """The draws that a pipeline makes for each image, booked when it is lowered.

    A booking is a slot, a row of the tables that `draw_all` makes for a batch at once.
    """

    def __init__(self) -> None:
        self._counters: list[int] = []
        self._lows: list[int] = []
        self._spans: list[int] = []
        self._node = 0
        self._calls = 0

    def start(self, node: int) -> None:
        """What follows is for another node of the pipeline."""
        self._node, self._calls = node, 0

    def book(self) -> int:
        """The slot of the node's next call, for a raw draw."""
        return self.book_array(1)[0]

    def book_array(self, count: int) -> list[int]:
        """The slots of the first `count` elements of the node's next call, for raw draws."""
        return self.book_integers(count, 0, 0)

    def book_integer(self, low: int, high: int) -> int:
        """The slot of the node's next call, for an integer in low .. high."""
        return self.book_integers(1, low, high)[0]

    def book_integers(self, count: int, low: int, high: int) -> list[int]:
        """The slots of the first `count` elements of the node's next call, for integers in low .. high."""
        slots = [len(self._counters) + element for element in range(count)]
        self._counters += [counter(self._node, self._calls, element) for element in range(count)]
        self._lows += [low] * count
        self._spans += [high - low + 1] * count
        self._calls += 1
        return slots

    def draw_all(self, keys: Tensor) -> Drawn:
        """Every booked draw of every image. keys: (N,) int64."""
        counters, lows, spans = (
            on_device(tuple(values), torch.int64, keys.device)[:, None]
            for values in (self._counters, self._lows, self._spans)
        )
        raw = draws(keys ^ counters, 0)
        return Drawn(raw, lows + below(raw, spans), keys)


Lowering = Callable[[Any, Form, Bookings], tuple[Step, Form]]
Choice = Callable[[Drawn, Tensor, Tensor | float], Tensor]


def refuse(transform: Any, reason: str) -> NoReturn:
    """Raise `NotLowerable` with the transform's name and the reason."""
    raise NotLowerable(f"{type(transform).__name__} ({reason})")


def refuse_two_sizes(transform: Any, before: Form, after: Form) -> None:
    """A batch has one size: what changes it must do so to every image."""
    if transform.p < 1 and before != after:
        refuse(transform, f"p={transform.p:g} leaves images of two sizes")


def ask(transform: Any, form: Form) -> dict[str, Any]:
    """The parameters that the transform itself chooses for an image of this form."""
    return cast(dict[str, Any], transform.get_params_dependent_on_data({"shape": (form.height, form.width, 3)}, {}))


def choice(transform: Any, bookings: Bookings) -> Choice:
    """Books the draw for the transform's p; gives choose(drawn, new, old), image by image."""
    if transform.p >= 1:
        return lambda drawn, new, old: new
    slot, limit = bookings.book(), threshold(transform.p)
    return lambda drawn, new, old: torch.where(per_image(drawn.raw[slot] < limit, new), new, old)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, ...) with as many axes as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def uniform(drawn: Tensor, low: float, high: float) -> Tensor:
    """Uniform float64 in low .. high, by the operations of `random.Random.uniform`: (N,)."""
    return low + (high - low) * (drawn.double() / (1 << DRAW_BITS))
