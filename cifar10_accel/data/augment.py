"""The augmentation of training images, written in Albumentations: the specification.

`training_pipeline` is what is done to an image, `apply` does it to one image. Every random choice is
a counter-based draw from the image's key, so it depends on (seed, epoch, sample index) and on nothing
that happened before: the same pixels for any number of workers and processes, and `batched.lower`
can make the same choices for a whole batch at once.

Albumentations draws from a `random.Random` and a `numpy.random.Generator`. Each transform gets
stand-ins for both that count calls: element e of call c of node n draws `draw(key, counter(n, c, e))`.
Node 0 is the Compose itself, then come the transforms, depth first.
"""

import math
import random
from collections.abc import Iterator
from importlib import import_module
from typing import Any, cast, get_args

import albumentations as A
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar10_accel.names import Augmentation
from cifar10_accel.randomness import DRAW_BITS, draw, draws, keys_for, seed_for
from cifar10_accel.settings import DataSettings

MEAN = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images, per channel, in 0..1
STD = (0.2470, 0.2435, 0.2616)
MEAN_COLOUR = tuple(round(255 * channel) for channel in MEAN)
IMAGE_SIZE = 32

Pipeline = A.Compose  # the name for rooms that do not import Albumentations

_CALL_BITS = 24
_NODE_BITS = 48
_FEW_DRAWS = 16  # up to here Python integers are faster than NumPy


class AlternatingFlip(A.HorizontalFlip):  # type: ignore[misc]
    """Mirrors an image in every other epoch, at random only which ones come first.

    Each image is seen in both orientations in every pair of epochs, which random flips miss half of
    the time (Jordan, 94% on CIFAR-10 in 3.29 seconds, https://arxiv.org/abs/2404.00498). The choice is
    the lowest bit of the image's key, see `image_key`.
    """

    def should_apply(self, force_apply: bool = False) -> bool:
        """Whether this image is mirrored in this epoch."""
        return bool(cast(_CountingRandom, self.py_random).stream.key & 1)


def training_pipeline(settings: DataSettings) -> A.Compose:
    """The transforms of `settings.augment`, in the order of `names`, then normalisation: uint8 HWC -> float32 CHW."""
    transforms: list[A.BasicTransform] = []
    for name in get_args(Augmentation):
        if name in settings.augment:
            transforms += import_module(f"cifar10_accel.data.augmentations.{name}").transforms(settings)
    return A.Compose([*transforms, A.Normalize(MEAN, STD), A.ToTensorV2()])


def image_key(seed: int, epoch: int, index: int) -> int:
    """The 64-bit key of one image in one epoch; its lowest bit changes from each epoch to the next."""
    first = seed_for(seed, "flip", index) & 1
    return seed_for(seed, "augment", epoch, index) & ~1 | (first ^ epoch & 1)


def image_keys(seed: int, epoch: int, indices: Any) -> Any:
    """`image_key` of every index: (N,) int64 (NumPy or torch, any device) -> (N,) int64."""
    first = keys_for(seed_for(seed, "flip"), indices) & 1
    return keys_for(seed_for(seed, "augment", epoch), indices) & ~1 | (first ^ epoch & 1)


def apply(pipeline: A.Compose, image: npt.NDArray[np.uint8], *, key: int) -> Tensor:
    """The image (32, 32, 3) uint8 after the pipeline, (3, 32, 32) float32; a function of the key alone."""
    for number, node in enumerate(_nodes(pipeline)):
        stream = _stream_of(node, number)
        stream.key, stream.call = key, 0
    result = pipeline(image=image)["image"]
    if isinstance(result, np.ndarray):  # a pipeline that does not end in ToTensorV2
        result = torch.from_numpy(np.ascontiguousarray(result.transpose(2, 0, 1)))
    return cast(Tensor, result.float())


class AugmentedImages(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """Augmented training images for loader workers; the same pixels whoever loads them.

    An item is asked for by (epoch, index), since workers that live longer than an epoch would not
    hear of a new one otherwise. images: (N, 32, 32, 3) uint8; labels: (N,) integers.
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[Any], *, pipeline: A.Compose, seed: int
    ) -> None:
        self.images = images
        self.labels = labels
        self.pipeline = pipeline
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> tuple[Tensor, int, int]:
        """The augmented image (3, 32, 32) float32, its label and its index."""
        epoch, index = epoch_and_index
        image = apply(self.pipeline, self.images[index], key=image_key(self.seed, epoch, index))
        return image, int(self.labels[index]), index


def counter(node: int, call: int, element: int) -> int:
    """The number of one draw: unique for fewer than 2**24 calls a node and elements a call."""
    return node << _NODE_BITS | call << _CALL_BITS | element


class _Stream:
    """The draws of one node of the pipeline for one image: a key and the number of calls so far."""

    __slots__ = ("call", "key", "node")

    def __init__(self, node: int) -> None:
        self.node = node
        self.key = 0
        self.call = 0

    def next(self) -> int:
        """The single draw of the next call, 0 .. 2**32 - 1."""
        self.call += 1
        return draw(self.key, counter(self.node, self.call - 1, 0))

    def next_array(self, count: int) -> npt.NDArray[np.int64]:
        """The `count` draws of the next call: (count,) int64."""
        self.call += 1
        start = counter(self.node, self.call - 1, 0)
        if count <= _FEW_DRAWS:
            return np.array([draw(self.key, start + element) for element in range(count)], dtype=np.int64)
        keys = np.array(self.key, dtype=np.uint64).astype(np.int64) ^ np.arange(count)
        return cast("npt.NDArray[np.int64]", draws(keys, start))


class _CountingRandom(random.Random):
    """`random.Random` whose every method is made of one stream's draws."""

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream
        super().__init__()

    def __new__(cls, stream: _Stream) -> "_CountingRandom":
        return super().__new__(cls)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stream,)

    def random(self) -> float:
        """The next draw / 2**32."""
        return self.stream.next() / (1 << DRAW_BITS)

    def getrandbits(self, k: int, /) -> int:
        """The top k bits of as many draws as it takes."""
        words = -(-k // DRAW_BITS)
        bits = sum(self.stream.next() << (DRAW_BITS * word) for word in range(words))
        return bits >> (words * DRAW_BITS - k)

    def _randbelow(self, n: int) -> int:  # what randint, randrange, choice, sample and shuffle ask
        words = -(-n.bit_length() // DRAW_BITS)
        return self.getrandbits(words * DRAW_BITS) * n >> (words * DRAW_BITS)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        """As `normalvariate`: the standard `gauss` keeps half of a pair for the next call."""
        return self.normalvariate(mu, sigma)


class _CountingGenerator:
    """The part of `numpy.random.Generator` that Albumentations uses most, made of one stream's draws.

    Any other method is that of a real Generator, started anew at each call from the next draws.
    """

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def integers(
        self, low: Any, high: Any = None, size: Any = None, dtype: Any = np.int64, endpoint: bool = False
    ) -> Any:
        """Uniform integers in low .. high - 1 (or high with `endpoint`), as NumPy's."""
        low, high = (0, low) if high is None else (low, high)
        span = np.asarray(high - low + endpoint, dtype=np.uint64)
        if np.any(span > 1 << DRAW_BITS):
            return self.__getattr__("integers")(low, high, size, dtype, endpoint)
        drawn = self._drawn(size, span).astype(np.uint64)
        return (low + (drawn * span >> DRAW_BITS).astype(np.int64)).astype(dtype)[()]

    def random(self, size: Any = None) -> Any:
        """Uniform floats in 0 .. 1."""
        return self._drawn(size, 0.0)[()] / (1 << DRAW_BITS)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Uniform floats in low .. high."""
        span = np.asarray(high) - low
        return low + span * (self._drawn(size, span)[()] / (1 << DRAW_BITS))

    def _drawn(self, size: Any, like: Any) -> npt.NDArray[np.int64]:
        shape = np.shape(like) if size is None else size
        shape = shape if isinstance(shape, tuple) else (int(shape),)
        return self.stream.next_array(math.prod(shape)).reshape(shape)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "stream":  # copy and pickle look for such names
            raise AttributeError(name)
        words = self.stream.next_array(2)
        return getattr(np.random.Generator(np.random.Philox(key=words)), name)


def _nodes(node: Any) -> Iterator[Any]:
    """The pipeline and everything in it, depth first."""
    yield node
    if isinstance(node, A.BaseCompose):
        for child in node.transforms:
            yield from _nodes(child)


def _stream_of(node: Any, number: int) -> _Stream:
    """The node's stream; its random generators are replaced at the first visit."""
    if not isinstance(node.py_random, _CountingRandom) or node.py_random.stream.node != number:
        stream = _Stream(number)
        # Not by set_random_state: that of a Compose would give its children the same.
        node.py_random = _CountingRandom(stream)
        node.random_generator = _CountingGenerator(stream)
    return cast(_Stream, node.py_random.stream)
