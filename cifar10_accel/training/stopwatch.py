"""Training time without evaluation and saving, summed over the parts of a resumed run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Stopwatch that is stopped until `start()` and within `paused()`.

    Args:
        seconds: The time to start from.
        since_lap: How much of it is since the last lap.
    """

    def __init__(self, seconds: float, *, since_lap: float = 0.0) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._last_lap = seconds - since_lap

    def start(self) -> None:
        """Start counting."""
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far, including those before a resume."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def since_lap(self) -> float:
        """Return the seconds since the last lap."""
        return self.seconds() - self._last_lap

    def lap(self) -> float:
        """Return the seconds since the last lap, and begin the next."""
        lap = self.since_lap()
        self._last_lap += lap
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
