"""Runs the trials of a sweep on this machine, several at a time, until there are enough."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Self

from cifar10_accel.console import format_seconds
from cifar10_accel.errors import Preempted, UserError
from cifar10_accel.processes import GRACE_SECONDS
from cifar10_accel.sweep.attempt import Attempt
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.results import best_of, short, shown
from cifar10_accel.sweep.search import Search
from cifar10_accel.sweep.slots import Slot
from cifar10_accel.trials import State

POLL_SECONDS = 0.2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Preempted):
    """A stop signal was obeyed: every training has saved and the same command goes on."""

    def __init__(self, signal_number: int, *, num_done: int, num_trials: int) -> None:
        UserError.__init__(
            self, f"stopped with {num_done} of {num_trials} trials done, all saved; the same command continues"
        )
        self.exit_code = 128 + signal_number


def run(
    sweep: Sweep, search: Search, slots: list[Slot], *, num_trials: int, num_processes: int, say: Callable[[str], None]
) -> None:
    """Runs trials until the sweep has `num_trials`, or the rest is in the hands of other runners.

    Trials that were left in the middle are continued first. A trial that fails is recorded and the sweep goes on.
    Raises `Stopped` after SIGINT or SIGTERM. Only the main thread may call this.
    """
    free, active = list(slots), list[Attempt]()
    report = _Report(sweep, search, num_trials, num_slots=len(slots), say=say)
    with _StopFlag() as stop, ExitStack() as leaving:
        leaving.callback(lambda: [attempt.end() for attempt in active])
        more = True
        while more or active:
            if stop.received:
                _stop_all(active, report)
                raise Stopped(stop.received, num_done=report.num_done(), num_trials=num_trials)
            if more and free:
                claimed = search.claim(num_trials=num_trials)
                more = claimed is not None
                if claimed:
                    active.append(Attempt(claimed, sweep, free.pop(0), num_processes=num_processes))
                    report.started(active[-1])
                    continue
            for attempt in list(active):
                state = attempt.follow()
                if state != "running":
                    active.remove(attempt)
                    free.append(attempt.slot)
                    report.ended(attempt, state)
            time.sleep(POLL_SECONDS)


def _stop_all(active: list[Attempt], report: "_Report") -> None:
    """All at once, so that they save side by side within one grace period."""
    for attempt in active:
        attempt.signal_stop()
    deadline = time.monotonic() + GRACE_SECONDS
    for attempt in list(active):
        report.ended(attempt, attempt.stopped(deadline))
        active.remove(attempt)


class _StopFlag:
    """Context in which SIGINT and SIGTERM raise a flag; the second of them ends the wait for trainings that save."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._notice) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number


class _Report:
    """One line for each thing that happens to a trial."""

    def __init__(
        self, sweep: Sweep, search: Search, num_trials: int, *, num_slots: int, say: Callable[[str], None]
    ) -> None:
        self._sweep, self._search, self._num_trials, self._num_slots, self._say = (
            sweep, search, num_trials, num_slots, say,
        )  # fmt: skip
        self._seconds: list[float] = []  # of the trials that came to an end here

    def num_done(self) -> int:
        """Trials that came to an end, wherever they ran."""
        return sum(trial.state in ("finished", "failed", "pruned") for trial in self._search.trials())

    def started(self, attempt: Attempt) -> None:
        """A trial starts, or goes on where it was left."""
        drawn = ", ".join(f"{name} {short(value)}" for name, value in attempt.claimed.parameters.items())
        self._say(f"trial {attempt.claimed.number} {'continues' if attempt.resumes else 'starts'}: {drawn}")

    def ended(self, attempt: Attempt, state: State) -> None:
        """A trial ended in this state."""
        what = f"trial {attempt.claimed.number} {state}"
        if state == "stopped":
            self._say(f"{what}{', ' + attempt.reason if attempt.reason else ''}: the same command continues it")
            return
        self._seconds.append(attempt.seconds)
        if state == "failed":
            self._say(f"{what}: {attempt.reason}{self._rest()}")
            return
        value = f"{self._sweep.metric} {shown(self._sweep.metric, attempt.value)}"
        self._say(f"{what} after {format_seconds(attempt.seconds)}: {value}{self._rest()}")

    def _rest(self) -> str:
        """Best so far, how many are done, and about how long the others will take."""
        trials = self._search.trials()
        best = best_of(trials, self._sweep.goal)
        done = self.num_done()
        words = "" if best is None else f"; best {shown(self._sweep.metric, best.value)} (trial {best.number})"
        words += f"; {done} of {self._num_trials} done"
        left = self._num_trials - done
        if left > 0:
            rounds = left / min(self._num_slots, left)
            words += f", about {format_seconds(rounds * sum(self._seconds) / len(self._seconds))} left"
        return words
