"""Seconds of training, without evaluation and saving, over all the pieces of a resumed run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Stands still until `start()`; `paused()` stops it for a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._last_lap = seconds

    def start(self) -> None:
        """Lets the time count from here."""
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far, what a resumed run had before included."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = self.seconds()
        lap, self._last_lap = now - self._last_lap, now
        return lap

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time does not count."""
        self._seconds, self._since = self.seconds(), None
        try:
            yield
        finally:
            self.start()
