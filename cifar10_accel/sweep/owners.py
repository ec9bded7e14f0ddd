"""Owners of trials: the runner that created a trial, or the one that took it over from a runner that is gone.

A runner that holds a trial renews the trial's record every RECORD_SECONDS. Runners with other folders cannot see its
lock, but they see that: a trial whose record has not changed for SILENCE_SECONDS is taken over. Each runner compares
what it has seen with its own clock, so the clocks of the machines need not agree.

A runner takes a trial over by creating a marker, a failed trial that says which trial it takes from whom. Storages
number trials one after the other, so of several markers for the same trial and owner everybody sees the same first one.
"""

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

RECORD_SECONDS = 15.0
SILENCE_SECONDS = 90.0  # longer than the pauses of a runner that waits for the end of a training
RUNNER, TAKES, RECORD, SURPLUS = "runner", "takes", "record", "surplus"


@dataclass(frozen=True)
class Owner:
    """The runner that a trial belongs to."""

    folder_id: str
    folder: str = ""  # its path on the runner's machine
    claim: str = ""  # random; empty in trials of earlier versions, which only runners of the same folder take over


def new_trial(folder_id: str, folder: str) -> FrozenTrial:
    """Return a running trial to enter into the storage."""
    runner = {"folder_id": folder_id, "folder": folder, "claim": uuid.uuid4().hex}
    return optuna.create_trial(state=TrialState.RUNNING, user_attrs={RUNNER: runner})


def new_marker(number: int, before: Owner, folder_id: str, folder: str) -> FrozenTrial:
    """Return a marker to enter into the storage: this folder takes the trial over from the owner before."""
    runner = {"folder_id": folder_id, "folder": folder, "claim": uuid.uuid4().hex}
    return optuna.create_trial(state=TrialState.FAIL, user_attrs={RUNNER: runner, TAKES: [number, before.claim]})


def owners_of(trials: Sequence[FrozenTrial]) -> dict[int, Owner]:
    """Return the owner of each trial by number, from all trials of a study in their order, markers included."""
    owners: dict[int, Owner] = {}
    for trial in trials:
        owner = _runner(trial)
        number, claim = trial.user_attrs.get(TAKES, (trial.number, None))
        if number == trial.number or owners[number].claim == claim:
            owners[number] = owner
    return owners


def record_of(trial: FrozenTrial | optuna.Trial) -> dict[str, Any]:
    """Return what runners have recorded about a trial; earlier versions used an attribute for each entry."""
    attributes = trial.user_attrs
    return {**attributes, **attributes.get(RECORD, {})}


def is_kept(trial: FrozenTrial) -> bool:
    """Return whether this is a trial of the sweep, and not a marker or one that was one too many."""
    return not {TAKES, SURPLUS} & set(trial.user_attrs)


def _runner(trial: FrozenTrial) -> Owner:
    runner = trial.user_attrs.get(RUNNER)
    return Owner(**runner) if runner else Owner(str(trial.user_attrs.get("mark")))


@dataclass(frozen=True)
class _Sight:
    content: str
    changed_at: float  # by time.monotonic, as the rest
    seen_at: float
    alive_at: float = -math.inf  # of the last change that happened within SILENCE_SECONDS


class Watch:
    """Observes the running trials of other runners."""

    def __init__(self) -> None:
        self._seen: dict[int, _Sight] = {}

    def look(self, trials: Sequence[FrozenTrial], owners: dict[int, Owner]) -> None:
        """Note which of these trials have changed since the last look."""
        now, seen = time.monotonic(), dict[int, _Sight]()
        for trial in trials:
            content = json.dumps([owners[trial.number].claim, trial.user_attrs.get(RECORD)], sort_keys=True)
            before = self._seen.get(trial.number)
            if before is None:
                seen[trial.number] = _Sight(content, now, now)
            elif before.content == content:
                seen[trial.number] = replace(before, seen_at=now)
            else:
                is_proof = now - before.seen_at < SILENCE_SECONDS
                seen[trial.number] = _Sight(content, now, now, now if is_proof else -math.inf)
        self._seen = seen

    def silent(self) -> list[int]:
        """Return the trials that have not changed for SILENCE_SECONDS: their runners are gone."""
        now = time.monotonic()
        return [number for number, sight in self._seen.items() if now - sight.changed_at >= SILENCE_SECONDS]

    def is_undecided(self) -> bool:
        """Return whether a trial's runner has shown itself neither alive nor gone within SILENCE_SECONDS."""
        now = time.monotonic()
        return any(now - sight.alive_at >= SILENCE_SECONDS for sight in self._seen.values())

    def forget(self) -> None:
        """Start anew, after a time in which nobody could renew a record."""
        self._seen.clear()
