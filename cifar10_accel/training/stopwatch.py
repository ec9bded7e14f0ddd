"""Training time without evaluation and saving, summed over the parts of a resumed run."""

import time
from collections.abc import Callable, Iterator
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
        self._started: torch.cuda.Event | None = None  # the last start, on a GPU
        self._last_lap = seconds - since_lap

    def start(self) -> None:
        """Start counting."""
        self._since = time.perf_counter()
        self._started = _recorded_event() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def seconds(self) -> float:
        """Return the seconds so far, including those before a resume; a GPU may still be computing."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def mark(self) -> Callable[[], float]:
        """Mark this point of the run.

        Returns:
            A function to be called once values that were computed before this point have been read. On a GPU it
            returns the seconds at which the GPU reached the point, elsewhere those at the call.
        """
        if self._started is None:
            return self.seconds
        before, started, here = self._seconds, self._started, _recorded_event()

        def seconds() -> float:
            here.synchronize()
            milliseconds: float = started.elapsed_time(here)
            return before + milliseconds / 1000

        return seconds

    def since_lap(self) -> float:
        """Return the seconds since the last lap."""
        return self.seconds() - self._last_lap

    def lap(self, seconds: float) -> float:
        """Return the time from the last lap to `seconds`, and begin the next."""
        lap, self._last_lap = seconds - self._last_lap, seconds
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


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
