"""Random generators for Albumentations whose draws are functions of an image's key.

Albumentations draws from a `random.Random` and a `numpy.random.Generator`. Each transform gets a replacement for both
that counts calls: element e of call c of transform n draws `draw(key, counter(n, c, e))`. Number 0 is the Compose
itself, followed by its transforms, depth first. The draws are therefore the same for any number of workers and
processes, and `batched.lower` can make them for a whole batch at once.
"""

import math
import random
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cifar10_accel.randomness import DRAW_BITS, draw, draws

_CALL_BITS = 24
_NODE_BITS = 48
_FEW_DRAWS = 16  # up to this number Python integers are faster than NumPy


def counter(node: int, call: int, element: int) -> int:
    """Return the number of one draw: unique for fewer than 2**24 calls per node and elements per call."""
    return node << _NODE_BITS | call << _CALL_BITS | element


class Stream:
    """Stream of draws of one node of the pipeline for one image: a key and the number of calls so far."""

    __slots__ = ("call", "key", "node")

    def __init__(self, node: int) -> None:
        self.node = node
        self.key = 0
        self.call = 0

    def next(self) -> int:
        """Return the single draw of the next call, 0 .. 2**32 - 1."""
        self.call += 1
        return draw(self.key, counter(self.node, self.call - 1, 0))

    def next_array(self, count: int) -> npt.NDArray[np.int64]:
        """Return the `count` draws of the next call: (count,) int64."""
        self.call += 1
        start = counter(self.node, self.call - 1, 0)
        if count <= _FEW_DRAWS:
            return np.array([draw(self.key, start + element) for element in range(count)], dtype=np.int64)
        keys = np.array(self.key, dtype=np.uint64).astype(np.int64) ^ np.arange(count)
        return cast("npt.NDArray[np.int64]", draws(keys, start))


class CountedRandom(random.Random):
    """`random.Random` that takes all its randomness from one stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        super().__init__()

    def __new__(cls, stream: Stream) -> "CountedRandom":
        return super().__new__(cls)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stream,)

    def random(self) -> float:
        """Return the next draw / 2**32."""
        return self.stream.next() / (1 << DRAW_BITS)

    def getrandbits(self, k: int, /) -> int:
        """Return the top k bits of as many draws as necessary."""
        words = -(-k // DRAW_BITS)
        bits = sum(self.stream.next() << (DRAW_BITS * word) for word in range(words))
        return bits >> (words * DRAW_BITS - k)

    def _randbelow(self, n: int) -> int:  # used by randint, randrange, choice, sample and shuffle
        words = -(-n.bit_length() // DRAW_BITS)
        return self.getrandbits(words * DRAW_BITS) * n >> (words * DRAW_BITS)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        """Return `normalvariate`, because the standard `gauss` caches the second number of a pair for the next call."""
        return self.normalvariate(mu, sigma)


class CountedGenerator:
    """Replacement for `numpy.random.Generator` that takes all its randomness from one stream.

    The methods that Albumentations uses most are implemented here. Any other method is that of a real Generator, which
    is seeded at each call with the next draws.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def integers(
        self, low: Any, high: Any = None, size: Any = None, dtype: Any = np.int64, endpoint: bool = False
    ) -> Any:
        """Return uniform integers in low .. high - 1 (or high with `endpoint`), as NumPy does."""
        low, high = (0, low) if high is None else (low, high)
        span = np.asarray(high - low + endpoint, dtype=np.uint64)
        if np.any(span > 1 << DRAW_BITS):
            return self.__getattr__("integers")(low, high, size, dtype, endpoint)
        drawn = self._drawn(size, span).astype(np.uint64)
        return (low + (drawn * span >> DRAW_BITS).astype(np.int64)).astype(dtype)[()]

    def random(self, size: Any = None) -> Any:
        """Return uniform floats in 0 .. 1."""
        return self._drawn(size, 0.0)[()] / (1 << DRAW_BITS)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Return uniform floats in low .. high."""
        span = np.asarray(high) - low
        return low + span * (self._drawn(size, span)[()] / (1 << DRAW_BITS))

    def _drawn(self, size: Any, like: Any) -> npt.NDArray[np.int64]:
        shape = np.shape(like) if size is None else size
        shape = shape if isinstance(shape, tuple) else (int(shape),)
        return self.stream.next_array(math.prod(shape)).reshape(shape)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "stream":  # copy and pickle look up such names
            raise AttributeError(name)
        words = self.stream.next_array(2)
        return getattr(np.random.Generator(np.random.Philox(key=words)), name)
