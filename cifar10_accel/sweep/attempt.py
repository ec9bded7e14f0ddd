"""One attempt at a trial: a training in a process group of its own, followed through the files it leaves."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cifar10_accel.metrics_log import read_metrics
from cifar10_accel.processes import GRACE_SECONDS, end, flags_of, running, training_command
from cifar10_accel.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.search import Claimed
from cifar10_accel.sweep.slots import Slot
from cifar10_accel.trials import Parameter, State

LOG = "sweep.log"
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Attempt:
    """A trial's training while it goes on. Start, follow and end it in the main thread."""

    def __init__(self, claimed: Claimed, sweep: Sweep, slot: Slot, *, num_processes: int) -> None:
        """Starts the training; one that an earlier runner of the sweep left behind gets time to end first."""
        self.claimed = claimed
        self.slot = slot
        self.curve: list[tuple[float, float]] = []  # (epoch, metric)
        self.reason = ""
        self.resumes = (claimed.folder / LOG).exists()
        self._sweep = sweep
        self._run = RunFolder(claimed.folder)
        self._read_at = 0  # when metrics.jsonl was changed that the curve is from
        settings = settings_of(sweep, claimed, slot)
        self._num_epochs = Settings(**settings).epochs
        _wait_until_free(claimed.folder)
        self._status_before = self._status_time()
        self._started = time.monotonic()
        self._context = ExitStack()
        self.process = self._context.enter_context(
            running(
                training_command(flags_of(settings), num_processes=num_processes),
                log=claimed.folder / LOG,
                environment=slot.environment,
            )
        )

    @property
    def seconds(self) -> float:
        """Wall time of this attempt."""
        return time.monotonic() - self._started

    @property
    def value(self) -> float | None:
        """The newest value of the metric."""
        return self.curve[-1][1] if self.curve else None

    def follow(self) -> State:
        """Passes on what is new, and the state of the trial: `running`, or how it ended (it is over then)."""
        code = self.process.poll()  # first, so that all values of an ended training are seen
        self._read_curve()
        give_up = self.claimed.report([value for _, value in self.curve], seconds=self.seconds)
        if code is None and give_up and self.curve[-1][0] < self._num_epochs:
            self.end()
            return self._close("pruned", f"behind at epoch {self.curve[-1][0]:g}")
        return "running" if code is None else self._ended(code)

    def signal_stop(self) -> None:
        """Asks the training to save and end."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)

    def stopped(self, deadline: float) -> State:
        """Waits, until a time of `monotonic`, for a training that was asked to stop: `stopped`, or `finished`."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, deadline - time.monotonic()))
        code = self.end()
        self._read_curve()
        self.claimed.report([value for _, value in self.curve], seconds=self.seconds)
        return self._ended(code) if code == 0 else self._close("stopped", "")

    def end(self) -> int:
        """Ends what still runs of the training; its exit code."""
        code = end(self.process)
        self._context.close()
        return code

    def _ended(self, code: int) -> State:
        """The trial's state after its training left with this code; told to the search."""
        self._context.close()
        status = self._run.read_json("status.json") if self._status_time() != self._status_before else {}
        if code == 0 and self.value is not None and math.isfinite(self.value):
            return self._close("finished", "")
        if code == 0:
            return self._close("failed", f"{self._sweep.metric} has no value at the end")
        if code in INTERRUPTED or status.get("state") == "preempted":
            return self._close("stopped", "a signal from outside")
        reason = str(status.get("reason") or "") if status.get("state") == "failed" else ""
        return self._close("failed", reason or self._last_error() or f"exit code {code}")

    def _close(self, state: State, reason: str) -> State:
        self.reason = reason.splitlines()[0] if reason else ""
        value = self.value if state == "finished" else None
        self.claimed.finish(state, value=value, curve=self.curve, seconds=self.seconds, reason=self.reason)
        return state

    def _read_curve(self) -> None:
        changed_at = _changed_at(self._run.metrics)
        if changed_at != self._read_at:
            lines = read_metrics(self._run.metrics)
            self.curve = [(line["epoch"], line[self._sweep.metric]) for line in lines if self._sweep.metric in line]
            self._read_at = changed_at

    def _status_time(self) -> int:
        return _changed_at(self._run.path / "status.json")

    def _last_error(self) -> str:
        """The last line in which the training named its error, if it came so far."""
        lines = (self.claimed.folder / LOG).read_text(errors="replace").splitlines()
        return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")


def settings_of(sweep: Sweep, claimed: Claimed, slot: Slot) -> dict[str, Parameter]:
    """The settings that a trial's training is given: the file's, those drawn, and what the sweep decides."""
    decided: Mapping[str, Parameter] = {"run_dir": str(claimed.folder)}
    shared: Mapping[str, Parameter] = {"num_threads": slot.num_threads} if slot.num_threads else {}
    return {"tracker": "none", **shared, **sweep.constants, **claimed.parameters, **decided}


def _changed_at(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _wait_until_free(folder: Path) -> None:
    """A training whose runner was killed saves and ends by itself; until then its folder is locked."""
    lock = FileLock(folder / ".lock", timeout=GRACE_SECONDS)
    with suppress(Timeout), lock:  # after that the training itself says that another one runs there
        pass
