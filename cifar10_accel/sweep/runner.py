"""Run the trials of a sweep on this machine, several at a time."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from optuna.exceptions import StorageInternalError

from cifar10_accel.errors import InputError, Preempted, SettingsError, UserError
from cifar10_accel.formatting import error_line, format_metric, format_seconds, format_short
from cifar10_accel.runs.trial import State, Trial
from cifar10_accel.signals import StopFlag
from cifar10_accel.subprocesses import GRACE_SECONDS, MachineShare
from cifar10_accel.sweep.claimed_trial import ClaimedTrial
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.owners import SILENCE_SECONDS
from cifar10_accel.sweep.results import best_of
from cifar10_accel.sweep.search import Search
from cifar10_accel.sweep.trial_process import TrialProcess

POLL_SECONDS = 0.2
LOOK_SECONDS = 5.0  # between looks for a trial, while all are taken


class Stopped(Preempted):
    """The sweep was stopped by a signal after all its trainings had saved; the same command continues it."""

    def __init__(self, signal_number: int, *, state: str) -> None:
        UserError.__init__(self, f"stopped {state}; the same command continues")
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
    """Run trials until the sweep has `num_trials`, or other runners are seen to run the rest. Main thread only.

    Interrupted trials are continued first, and those of runners that are gone last. A trial that fails is recorded and
    the sweep continues, unless it lacked the data on this machine.

    Args:
        sweep: The sweep file.
        search: The sweep's study.
        shares: Parts of the machine, one for each trial that runs at the same time.
        num_trials: Trials in total, earlier ones included.
        num_processes: Processes of each trial.
        print_line: Called with a line of text when a trial starts or ends.

    Raises:
        Stopped: SIGINT or SIGTERM was received.
        InputError: A trial lacked the data on this machine.
    """
    free, active = list(shares), list[TrialProcess]()
    progress = SweepProgress(sweep, search, num_trials=num_trials, num_workers=len(shares), print_line=print_line)
    with StopFlag() as stop, _stopped_rather_than_outage(stop), ExitStack() as stack:
        stack.callback(lambda: [process.end() for process in active])
        search.wait_while(lambda: not stop.signal_number)
        next_look = time.monotonic()
        while True:
            if stop.signal_number:
                _stop_all(active, progress)
                raise Stopped(
                    stop.signal_number, state=f"with {progress.num_done()} of {num_trials} trials done, all saved"
                )
            if free and time.monotonic() >= next_look:
                trial = search.claim(num_trials=num_trials)
                if trial:
                    process = _started(trial, sweep, free[0], progress, num_processes=num_processes)
                    if process is not None:
                        free.remove(process.share)
                        active.append(process)
                    continue
                if not active and not search.is_undecided():
                    return
                if not active:
                    progress.print_waiting()
                next_look = time.monotonic() + LOOK_SECONDS
            for process in list(active):
                state = process.poll()
                if state != "running":
                    active.remove(process)
                    free.append(process.share)
                    progress.print_end(process, state)
                    next_look = time.monotonic()
                    if process.lacks_data:  # as the next trials would: they must not be used up
                        _stop_all(active, progress)
                        raise InputError(
                            f"trial {process.trial.number}: {process.reason}; then the same command continues"
                        )
            time.sleep(POLL_SECONDS)


@contextmanager
def _stopped_rather_than_outage(stop: StopFlag) -> Iterator[None]:
    """Context that raises `Stopped` after a signal, also if the storage does not answer then; it is not waited for."""
    try:
        yield
    except StorageInternalError:
        if not stop.signal_number:
            raise
        raise Stopped(stop.signal_number, state="while the storage does not answer, all trainings saved") from None


def _started(
    trial: ClaimedTrial, sweep: Sweep, share: MachineShare, progress: "SweepProgress", *, num_processes: int
) -> TrialProcess | None:
    """Return the process of a trial; None if its values do not go together, which makes it a failed trial."""
    try:
        process = TrialProcess(trial, sweep, share, num_processes=num_processes)
    except SettingsError as error:  # of values between the extreme ones that were checked before
        trial.finish("failed", value=None, curve=[], seconds=0.0, reason=error_line(error))
        progress.print_failure(trial, error_line(error))
        return None
    progress.print_start(process)
    return process


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
        self._is_waiting = False

    def num_done(self) -> int:
        """Return the number of trials that ended, on this machine or another."""
        return _num_done(self._search.trials())

    def print_waiting(self) -> None:
        """Print, once, that this runner waits for signs of life of the others."""
        if not self._is_waiting:
            wait = format_seconds(SILENCE_SECONDS)
            self._print_line(f"all trials are taken; one without a sign of life for {wait} is continued here")
        self._is_waiting = True

    def print_start(self, process: TrialProcess) -> None:
        """Print that a trial starts or continues, with its parameters."""
        parameters = ", ".join(f"{name} {format_short(value)}" for name, value in process.trial.parameters.items())
        self._print_line(f"trial {process.trial.number} {'continues' if process.resumes else 'starts'}: {parameters}")

    def print_failure(self, trial: ClaimedTrial, reason: str) -> None:
        """Print that a trial failed, or could not start."""
        self._print_line(f"trial {trial.number} failed: {reason}{self._summary()}")

    def print_end(self, process: TrialProcess, state: State) -> None:
        """Print that a trial ended in this state."""
        title = f"trial {process.trial.number} {state}"
        if process.trial.is_lost:
            self._print_line(f"{title}: another runner has ended it")
            return
        if state == "stopped":
            reason = f", {process.reason}" if process.reason else ""
            self._print_line(f"{title}{reason}: the same command continues it")
            return
        self._seconds.append(process.seconds)
        if state == "failed":
            self.print_failure(process.trial, process.reason)
            return
        value = f"{self._sweep.metric} {format_metric(self._sweep.metric, process.value)}"
        self._print_line(f"{title} after {format_seconds(process.seconds)}: {value}{self._summary()}")

    def _summary(self) -> str:
        """Return the best value so far, the number of trials done, and an estimate of the time left."""
        trials = self._search.trials()
        best, done = best_of(trials, self._sweep.goal), _num_done(trials)
        text = "" if best is None else f"; best {format_metric(self._sweep.metric, best.value)} (trial {best.number})"
        text += f"; {done} of {self._num_trials} done"
        left = self._num_trials - done
        if left > 0 and self._seconds:
            rounds = left / min(self._num_workers, left)
            text += f", about {format_seconds(rounds * sum(self._seconds) / len(self._seconds))} left"
        return text


def _num_done(trials: list[Trial]) -> int:
    return sum(trial.state in ("finished", "failed", "pruned") for trial in trials)
