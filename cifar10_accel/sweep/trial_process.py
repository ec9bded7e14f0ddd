"""The training of a trial in a process group of its own, followed through the files of its run folder."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cifar10_accel.errors import InputError
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.runs.trial import Parameter, State
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import (
    GRACE_SECONDS,
    MachineShare,
    end,
    running,
    settings_to_flags,
    training_command,
    why_failed,
)
from cifar10_accel.sweep.claimed_trial import ClaimedTrial
from cifar10_accel.sweep.file import Sweep

LOG = "sweep.log"
DATA_SETTINGS = {"dataset", "data_dir"}  # settings of which one value may be wrong
FileVersion = tuple[int, int, int]  # of a file: modification time in ns, size in bytes, inode
# Exit codes of a training that a signal from outside has ended: after it has saved, or before it could handle signals.
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)


class TrialProcess:
    """A running training of a trial. Use it in the main thread only."""

    def __init__(self, trial: ClaimedTrial, sweep: Sweep, share: MachineShare, *, num_processes: int) -> None:
        """Start the training, after one that a killed runner left behind in the folder has ended."""
        self.trial = trial
        self.share = share
        self.curve: list[tuple[float, float]] = []  # (epoch, metric)
        self.reason = ""
        self.lacks_data = False  # it ended since the data are missing or damaged, as they are for every trial
        self.resumes = (trial.folder / LOG).exists()
        self._sweep = sweep
        self._run = RunFolder(trial.folder)
        self._curve_version: FileVersion | None = None  # of the metrics.jsonl that the curve was read from
        settings = settings_of(sweep, trial, share)
        self._num_epochs = Settings(**settings).epochs
        _wait_until_free(trial.folder)
        self._status_before = self._status_version()
        self._started = time.monotonic()
        self._context = ExitStack()
        self.process = self._context.enter_context(
            running(
                training_command(settings_to_flags(settings), num_processes=num_processes),
                log=trial.folder / LOG,
                environment=share.environment,
            )
        )

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self._started

    @property
    def value(self) -> float | None:
        """Newest value of the metric."""
        return self.curve[-1][1] if self.curve else None

    def poll(self) -> State:
        """Report new values to the search and return the state of the trial; it has ended unless that is `running`."""
        code = self.process.poll()  # before the values, so that those of an ended training are complete
        self._read_curve()
        should_prune = self.trial.report([value for _, value in self.curve], seconds=self.seconds)
        if self.trial.is_lost:
            self.end()
            return self._close("stopped", "")
        if code is None and should_prune and self.curve[-1][0] < self._num_epochs:
            self.end()
            return self._close("pruned", f"behind at epoch {self.curve[-1][0]:g}")
        return "running" if code is None else self._ended(code)

    def request_stop(self) -> None:
        """Send SIGTERM: the training saves and ends."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)

    def wait_until_stopped(self, deadline: float) -> State:
        """Wait for a training after `request_stop` until a time of `time.monotonic`; return the state of the trial."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, deadline - time.monotonic()))
        code = self.end()
        self._read_curve()
        self.trial.report([value for _, value in self.curve], seconds=self.seconds)
        return self._ended(code) if code == 0 else self._close("stopped", "")

    def end(self) -> int:
        """End all processes of the training and return its exit code."""
        code = end(self.process)
        self._context.close()
        return code

    def _ended(self, code: int) -> State:
        """Record and return the state of a trial whose training ended with this exit code."""
        self._context.close()
        has_opened_folder = self._status_version() != self._status_before  # which comes after reading the data
        status = self._run.read_json("status.json") if has_opened_folder else {}
        if code == 0 and self.value is not None and math.isfinite(self.value):
            return self._close("finished", "")
        if code == 0:
            return self._close("failed", f"{self._sweep.metric} has no value at the end")
        if code in INTERRUPTED or status.get("state") == "preempted":
            return self._close("stopped", "a signal from outside")
        reason = str(status.get("reason") or "") if status.get("state") == "failed" else ""
        reason = reason or why_failed(code, self.trial.folder / LOG)
        is_bad_input = code == InputError.exit_code and not has_opened_folder
        self.lacks_data = is_bad_input and DATA_SETTINGS.isdisjoint(self.trial.parameters)
        return self._close("stopped" if self.lacks_data else "failed", reason)

    def _close(self, state: State, reason: str) -> State:
        self.reason = reason.splitlines()[0] if reason else ""
        value = self.value if state == "finished" else None
        self.trial.finish(state, value=value, curve=self.curve, seconds=self.seconds, reason=self.reason)
        return state

    def _read_curve(self) -> None:
        version = _version_of(self._run.metrics)
        if version != self._curve_version:
            lines = read_metrics(self._run.metrics)
            self.curve = [(line["epoch"], line[self._sweep.metric]) for line in lines if self._sweep.metric in line]
            self._curve_version = version

    def _status_version(self) -> FileVersion | None:
        return _version_of(self._run.path / "status.json")


def settings_of(sweep: Sweep, trial: ClaimedTrial, share: MachineShare) -> dict[str, Parameter]:
    """Return the settings of a trial: the file's constants, the trial's parameters, run folder and threads."""
    threads: Mapping[str, Parameter] = {"num_threads": share.num_threads} if share.num_threads else {}
    return {"tracker": "none", **threads, **sweep.constants, **trial.parameters, "run_dir": str(trial.folder)}


def _version_of(path: Path) -> FileVersion | None:
    """Return what changes when a file is written or replaced, also where times are whole seconds; None: no file."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _wait_until_free(folder: Path) -> None:
    """Wait for the lock of the run folder: a training whose runner was killed saves and ends by itself."""
    lock = FileLock(folder / ".lock", timeout=GRACE_SECONDS)
    with suppress(Timeout), lock:  # after a timeout the new training fails with the reason
        pass
