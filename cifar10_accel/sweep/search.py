"""Search on Optuna: the settings of the next trial, the claim of a trial by one runner, and early stopping.

The storage (a journal file in the sweep's folder, or a database) is the only record of a sweep. All runners of the
sweep, on one machine or many, work on it. These rules make sure that a sweep of N trials runs exactly N:

- A trial is created and claimed in one operation: it enters the storage as running, with its runner's folder. The
  storage numbers the trials, so if two runners both create the last one, the second sees that its trial is surplus and
  discards it.
- Whoever holds the lock file in a trial's folder runs the trial. The kernel releases the lock of a killed runner, and
  the next runner of the same folder continues the trial under its number, from its checkpoint.
- If no runner of that folder does, a runner of another folder takes the trial over (`owners.py`) and runs it again
  under its number. (Optuna's heartbeats would replace it by a new trial.) A stopped trial is left to its folder.
- The values drawn for a trial depend only on its number and the results so far, so a sweep that is restarted, or run by
  several runners, draws nothing twice.
"""

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from cifar10_accel.errors import InputError
from cifar10_accel.files import output_of
from cifar10_accel.runs.trial import State, Trial
from cifar10_accel.sweep import owners
from cifar10_accel.sweep.claimed_trial import ClaimedTrial
from cifar10_accel.sweep.database import PatientStorage
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.identity import claim_folder, recorded_study, require_same_sweep
from cifar10_accel.sweep.owners import is_kept, owners_of, record_of
from cifar10_accel.sweep.sampling import pruner, sampler
from cifar10_accel.sweep.storage import JOURNAL, folder_id, open_storage

STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "stopped",
}

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Search:
    """The study of one sweep. Several processes may open the same one."""

    def __init__(self, sweep: Sweep, folder: Path, *, storage: str | None) -> None:
        """Open the study, or create it.

        Raises:
            SettingsError: The folder cannot be written, the study is of another sweep, or the storage cannot be opened.
        """
        self._sweep = sweep
        self._folder = folder.resolve()
        with output_of("dir", folder):
            folder.mkdir(parents=True, exist_ok=True)
            locked = FileLock(folder / ".lock").acquire()
        with locked:
            self._folder_id = folder_id(folder)
            self._storage = open_storage(folder, storage)
            studies = {} if storage else _identities(self._storage)
            name = claim_folder(sweep, folder, storage=storage, studies=studies)
            self._study = _open_study(sweep, folder, self._storage, name=name)
        self._study_id = self._storage.get_study_id_from_name(name)
        self._surplus = _former_surplus(self._study)
        self._claimed: set[int] = set()  # trials claimed by this runner before, some of them stopped since
        self._watch = owners.Watch()
        self._num_outages = 0

    def trials(self) -> list[Trial]:
        """Return all trials in the order of their start."""
        return _as_trials(self._read(), self._sweep, self._surplus)

    def wait_while(self, condition: Callable[[], bool]) -> None:
        """Stop waiting for a database that does not answer when the condition is false; it is called often."""
        if isinstance(self._storage, PatientStorage):
            self._storage.should_wait = condition

    def is_undecided(self) -> bool:
        """Return whether a trial that was running at the last `claim` may prove to be without a runner."""
        return self._watch.is_undecided()

    def claim(self, *, num_trials: int) -> ClaimedTrial | None:
        """Claim an interrupted trial, or a new one if there are fewer than `num_trials`; None if all are taken."""
        trials = self._read()
        owner = owners_of(trials)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING and is_kept(trial)]
        own = [trial.number for trial in running if owner[trial.number].folder_id == self._folder_id]
        for number in own:
            claimed = None if number in self._claimed else self._try_claim(number, num_trials)
            if claimed:
                return claimed
        while len(self._kept(trials)) < num_trials:
            claimed = self._create(trials, num_trials)
            if claimed:
                return claimed
            trials = self._read()
        return self._take_over([trial for trial in running if trial.number not in own], owner, num_trials)

    def _create(self, trials: list[FrozenTrial], num_trials: int) -> ClaimedTrial | None:
        """Return a new trial; None if another runner of this folder has claimed it first, or it is surplus.

        Args:
            trials: All trials, as read before.
            num_trials: Trials of the sweep.
        """
        new = owners.new_trial(self._folder_id, str(self._folder))
        trial = optuna.Trial(copy.copy(self._study), self._storage.create_new_trial(self._study_id, new))
        folder = self._trial_folder(trial.number)
        try:
            folder.mkdir()
        except FileExistsError:
            return self._try_claim(trial.number, num_trials)
        if trial.number != len(trials):
            return self._try_claim(trial.number, num_trials)
        # Nobody has created a trial since, nor claimed this one: all trials need not be read again.
        lock = _lock(folder)
        if lock is None:
            return None
        return self._claimed_trial(trial, lock, index=len(self._kept(trials)), num_trials=num_trials)

    def _take_over(
        self, elsewhere: list[FrozenTrial], owner: dict[int, owners.Owner], num_trials: int
    ) -> ClaimedTrial | None:
        """Return one of these trials, which runners of other folders hold, if its runner is gone."""
        num_outages = self._storage.num_outages if isinstance(self._storage, PatientStorage) else 0
        if num_outages != self._num_outages:
            self._num_outages = num_outages
            self._watch.forget()
        takeable = [one for one in elsewhere if owner[one.number].claim and not record_of(one).get("stopped")]
        self._watch.look(takeable, owner)
        for number in self._watch.silent():
            marker = owners.new_marker(number, owner[number], self._folder_id, str(self._folder))
            self._storage.create_new_trial(self._study_id, marker)
            claimed = self._try_claim(number, num_trials)
            if claimed:
                return claimed
        return None

    def _try_claim(self, number: int, num_trials: int) -> ClaimedTrial | None:
        """Return the trial if its lock is free, it is this folder's and has not ended, and it is no surplus."""
        folder = self._trial_folder(number)
        folder.mkdir(exist_ok=True)
        lock = _lock(folder)
        if lock is None:
            return None
        trials = self._read()
        frozen = trials[number]
        before = [trial for trial in self._kept(trials) if trial.number < number]
        is_own = owners_of(trials)[number].folder_id == self._folder_id
        if frozen.state == TrialState.RUNNING and is_own and len(before) < num_trials:
            trial = optuna.Trial(copy.copy(self._study), frozen._trial_id)
            return self._claimed_trial(trial, lock, index=len(before), num_trials=num_trials)
        if frozen.state == TrialState.RUNNING and is_own and not frozen.params:  # never started, so surplus
            self._discard(frozen)
        lock.release()
        return None

    def _claimed_trial(self, trial: optuna.Trial, lock: FileLock, *, index: int, num_trials: int) -> ClaimedTrial:
        """Return the trial that this runner holds now.

        Args:
            trial: In a study of its own, since a study keeps the results that its sampler has read.
            lock: Of the trial's folder.
            index: Number of trials of the sweep before it.
            num_trials: Trials of the sweep.
        """
        self._claimed.add(trial.number)  # a trial that this runner stops is for the next runner
        trial.study.sampler = sampler(self._sweep, index=index, number=trial.number, num_trials=num_trials)
        return ClaimedTrial(trial, self._sweep, self._trial_folder(trial.number), lock)

    def _trial_folder(self, number: int) -> Path:
        return self._folder / f"trial-{number:04d}"

    def _discard(self, trial: FrozenTrial) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, owners.SURPLUS, True)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _read(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return trials

    def _kept(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in trials if is_kept(trial) and trial.number not in self._surplus]


def _lock(folder: Path) -> FileLock | None:
    """Return the lock of a trial's folder, acquired; None if another runner has it."""
    lock = FileLock(folder / ".claimed", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def read_trials(sweep: Sweep, folder: Path, *, storage: str | None) -> list[Trial]:
    """Return the trials of an existing sweep, without changing anything.

    Raises:
        InputError: There is no such sweep in the folder or the storage.
    """
    if storage is None and not (folder / JOURNAL).exists():
        raise InputError(f"{folder}: no {JOURNAL} there; give the folder of a sweep, or --storage as in its run")
    try:
        name = recorded_study(folder) or sweep.name
        study = optuna.load_study(study_name=name, storage=open_storage(folder, storage))
    except KeyError:
        raise InputError(f"{folder}: the storage has no sweep {sweep.name!r}; give --storage as in its run") from None
    return _as_trials(study.get_trials(deepcopy=False), sweep, _former_surplus(study))


def _as_trials(trials: Sequence[FrozenTrial], sweep: Sweep, surplus: set[int]) -> list[Trial]:
    owner = owners_of(trials)
    kept = [trial for trial in trials if is_kept(trial) and trial.number not in surplus]
    return [_as_trial(trial, sweep, owner[trial.number].folder) for trial in kept]


def _as_trial(frozen: FrozenTrial, sweep: Sweep, folder: str) -> Trial:
    record, reported = record_of(frozen), frozen.intermediate_values
    last = reported[max(reported)] if reported else record.get("value")
    value = frozen.value if frozen.state == TrialState.COMPLETE else last
    is_stopped = record.get("stopped") and frozen.state == TrialState.RUNNING
    return Trial(
        number=frozen.number,
        state="stopped" if is_stopped else STATES[frozen.state],
        parameters={name: sweep.searched[name].value(drawn) for name, drawn in frozen.params.items()},
        value=None if value is None or math.isnan(value) else value,
        curve=tuple((epoch, value) for epoch, value in record.get("curve", [])),
        seconds=float(record.get("seconds", 0)),
        where=str(record.get("folder") or Path(folder) / f"trial-{frozen.number:04d}"),
        reason=str(record.get("reason", "")),
    )


def _former_surplus(study: optuna.Study) -> set[int]:
    """Return the numbers of the trials that an earlier version discarded; it noted them in the study."""
    prefix = "surplus-"
    return {int(name.removeprefix(prefix)) for name in study.user_attrs if name.startswith(prefix)}


def _open_study(sweep: Sweep, folder: Path, storage: optuna.storages.BaseStorage, *, name: str) -> optuna.Study:
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        direction=sweep.goal,
        pruner=pruner(sweep),
    )
    before = study.user_attrs.get("sweep")
    if before is None:
        study.set_user_attr("sweep", json.dumps(sweep.identity(), sort_keys=True))
    else:  # a study of a database, which has been opened from another folder too
        require_same_sweep(sweep, json.loads(before), folder, study=name)
    return study


def _identities(storage: optuna.storages.BaseStorage) -> dict[str, dict[str, Any]]:
    """Return the identity of the sweep of each study, by the study's name."""
    found = {study.study_name: study.user_attrs.get("sweep") for study in storage.get_all_studies()}
    return {name: json.loads(identity) for name, identity in found.items() if identity is not None}
