"""A trial that a runner has claimed: its parameters, its record in the storage, and its end."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from cifar10_accel.runs.trial import State
from cifar10_accel.sweep import owners
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.owners import RECORD, record_of
from cifar10_accel.sweep.sampling import draw


class ClaimedTrial:
    """A trial that only this process may run, until `finish` or the end of the process."""

    def __init__(self, trial: optuna.Trial, sweep: Sweep, folder: Path, lock: FileLock) -> None:
        self._trial, self._storage = trial, trial.storage
        self._lock = lock
        self.folder = folder
        self.number = trial.number
        self.is_lost = False  # another runner has taken the trial over, since this one was silent, and ended it
        self.parameters = {name: space.value(draw(trial, name, space)) for name, space in sweep.searched.items()}
        self._is_halving = sweep.halving is not None
        self._num_reported = len(self._storage.get_trial(trial._trial_id).intermediate_values) if sweep.halving else 0
        self._last_rung = math.inf if sweep.halving is None else sweep.halving.last_rung or math.inf
        before = record_of(trial)
        self._record: dict[str, Any] = {name: before[name] for name in ("value", "curve", "reason") if name in before}
        self._seconds_before = float(before.get("seconds", 0))
        self._recorded_at = time.monotonic()
        if before.get("stopped"):
            self._write(0, stopped=False)

    def report(self, values: Sequence[float], *, seconds: float) -> bool:
        """Record the values of the metric and return whether the trial should be ended early.

        Args:
            values: All values so far; each counts as one iteration, as it does for W&B.
            seconds: Wall time since the claim.
        """
        should_prune = False
        try:
            for step in range(self._num_reported + 1, len(values) + 1) if self._is_halving else ():
                self._trial.report(values[step - 1], step)
                self._num_reported = step
                should_prune = should_prune or (step <= self._last_rung and self._trial.should_prune())
            if time.monotonic() - self._recorded_at >= owners.RECORD_SECONDS:
                self._write(seconds, **({"value": values[-1]} if values else {}))
        except UpdateFinishedTrialError:
            self.is_lost = True
        return should_prune or self.is_lost

    def finish(
        self, state: State, *, value: float | None, curve: Sequence[tuple[float, float]], seconds: float, reason: str
    ) -> None:
        """Record the end of the trial, or with `stopped` that it is to be continued, and release it."""
        last = curve[-1][1] if curve else None
        try:
            self._write(seconds, value=last, curve=curve, reason=reason, stopped=state == "stopped")
            if state == "finished":
                self._end(TrialState.COMPLETE, value)
            elif state == "pruned":
                self._end(TrialState.PRUNED, last)
            elif state == "failed":
                self._end(TrialState.FAIL, None)
        except UpdateFinishedTrialError:
            self.is_lost = True
        self._lock.release()

    def _write(self, seconds: float, **entries: Any) -> None:
        """Renew the record, in one attribute since each costs several messages to the database and back."""
        self._record |= entries | {"seconds": self._seconds_before + seconds, "folder": str(self.folder)}
        self._storage.set_trial_user_attr(self._trial._trial_id, RECORD, self._record)
        self._recorded_at = time.monotonic()

    def _end(self, state: TrialState, value: float | None) -> None:
        values = None if value is None or math.isnan(value) else [value]
        self._storage.set_trial_state_values(self._trial._trial_id, state, values)
