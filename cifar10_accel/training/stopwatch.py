"""Training time without evaluation and saving, summed over the parts of a resumed run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Stopwatch that is stopped until `start()` and within `paused()`; `seconds` is the time to start from."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._last_lap = seconds

    def start(self) -> None:
        """Start counting."""
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far, including those before a resume."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = self.seconds()
        lap, self._last_lap = now - self._last_lap, now
        return lap

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context during which the stopwatch does not run; a GPU's work up to here still counts."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        self._seconds, self._since = self.seconds(), None
        try:
            yield
        finally:
            self.start()
