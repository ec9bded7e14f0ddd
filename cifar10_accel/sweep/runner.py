"""Run the trials of a sweep on this machine, several at a time."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from cifar10_accel.errors import Preempted, UserError
from cifar10_accel.formatting import format_metric, format_seconds, format_short
from cifar10_accel.runs.trial import State
from cifar10_accel.signals import StopFlag
from cifar10_accel.subprocesses import GRACE_SECONDS, MachineShare
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.results import best_of
from cifar10_accel.sweep.search import Search
from cifar10_accel.sweep.trial_process import TrialProcess

POLL_SECONDS = 0.2


class Stopped(Preempted):
    """The sweep was stopped by a signal after all its trainings had saved; the same command continues it."""

    def __init__(self, signal_number: int, *, num_done: int, num_trials: int) -> None:
        UserError.__init__(
            self, f"stopped with {num_done} of {num_trials} trials done, all saved; the same command continues"
        )
        self.exit_code = 128 + signal_number


def run(
    sweep: Sweep,
    search: Search,
    shares: list[MachineShare],
    *,
    num_trials: int,
    num_processes: int,
    print_line: Callable[[str], None],
) -> None:
    """Run trials until the sweep has `num_trials`, or other runners have claimed the rest. Main thread only.

    Interrupted trials are continued first. A trial that fails is recorded and the sweep continues.

    Args:
        sweep: The sweep file.
        search: The sweep's study.
        shares: Parts of the machine, one for each trial that runs at the same time.
        num_trials: Trials in total, earlier ones included.
        num_processes: Processes of each trial.
        print_line: Called with a line of text when a trial starts or ends.

    Raises:
        Stopped: SIGINT or SIGTERM was received.
    """
    free, active = list(shares), list[TrialProcess]()
    progress = SweepProgress(sweep, search, num_trials=num_trials, num_workers=len(shares), print_line=print_line)
    with StopFlag() as stop, ExitStack() as stack:
        stack.callback(lambda: [process.end() for process in active])
        more = True
        while more or active:
            if stop.signal_number:
                _stop_all(active, progress)
                raise Stopped(stop.signal_number, num_done=progress.num_done(), num_trials=num_trials)
            if more and free:
                trial = search.claim(num_trials=num_trials)
                more = trial is not None
                if trial:
                    active.append(TrialProcess(trial, sweep, free.pop(0), num_processes=num_processes))
                    progress.print_start(active[-1])
                    continue
            for process in list(active):
                state = process.poll()
                if state != "running":
                    active.remove(process)
                    free.append(process.share)
                    progress.print_end(process, state)
            time.sleep(POLL_SECONDS)


def _stop_all(active: list[TrialProcess], progress: "SweepProgress") -> None:
    """Stop all trainings at the same time, so that they save within one grace period."""
    for process in active:
        process.request_stop()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in list(active):
        progress.print_end(process, process.wait_until_stopped(deadline))
        active.remove(process)


class SweepProgress:
    """Prints a line when a trial starts or ends, with the best value and the time left."""

    def __init__(
        self, sweep: Sweep, search: Search, *, num_trials: int, num_workers: int, print_line: Callable[[str], None]
    ) -> None:
        self._sweep = sweep
        self._search = search
        self._num_trials = num_trials
        self._num_workers = num_workers
        self._print_line = print_line
        self._seconds: list[float] = []  # of the trials that ended here

    def num_done(self) -> int:
        """Return the number of trials that ended, on this machine or another."""
        return sum(trial.state in ("finished", "failed", "pruned") for trial in self._search.trials())

    def print_start(self, process: TrialProcess) -> None:
        """Print that a trial starts or continues, with its parameters."""
        parameters = ", ".join(f"{name} {format_short(value)}" for name, value in process.trial.parameters.items())
        self._print_line(f"trial {process.trial.number} {'continues' if process.resumes else 'starts'}: {parameters}")

    def print_end(self, process: TrialProcess, state: State) -> None:
        """Print that a trial ended in this state."""
        title = f"trial {process.trial.number} {state}"
        if state == "stopped":
            reason = f", {process.reason}" if process.reason else ""
            self._print_line(f"{title}{reason}: the same command continues it")
            return
        self._seconds.append(process.seconds)
        if state == "failed":
            self._print_line(f"{title}: {process.reason}{self._summary()}")
            return
        value = f"{self._sweep.metric} {format_metric(self._sweep.metric, process.value)}"
        self._print_line(f"{title} after {format_seconds(process.seconds)}: {value}{self._summary()}")

    def _summary(self) -> str:
        """Return the best value so far, the number of trials done, and an estimate of the time left."""
        best = best_of(self._search.trials(), self._sweep.goal)
        done = self.num_done()
        text = "" if best is None else f"; best {format_metric(self._sweep.metric, best.value)} (trial {best.number})"
        text += f"; {done} of {self._num_trials} done"
        left = self._num_trials - done
        if left > 0:
            rounds = left / min(self._num_workers, left)
            text += f", about {format_seconds(rounds * sum(self._seconds) / len(self._seconds))} left"
        return text
