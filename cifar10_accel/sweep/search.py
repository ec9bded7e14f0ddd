"""Search on Optuna: the settings of the next trial, the claim of a trial by one runner, and early stopping.

The storage (a journal file in the sweep's folder, or a database) is the only record of a sweep. All runners of the
sweep, on one machine or many, work on it. Three rules make sure that a sweep of N trials runs exactly N:

- A trial is created and claimed in one operation: it enters the storage as running, with the id of its runner's folder.
  The storage numbers the trials, so if two runners both create the last one, the second sees that its trial is surplus
  and discards it.
- Whoever holds the lock file in a trial's folder runs the trial. The kernel releases the lock of a killed runner, and
  the next runner of the same folder continues the trial under its number. (Optuna's heartbeats exist only for
  databases, take minutes, and replace a dead trial by a new one.) Trials of other folders are left alone.
- The values drawn for a trial depend only on its number and the results so far, so a sweep that is restarted, or run by
  several runners, draws nothing twice.
"""

import json
import math
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.randomness import seed_for
from cifar10_accel.runs.trial import State, Trial
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.spaces import Choice, Space
from cifar10_accel.sweep.storage import JOURNAL, folder_id, open_storage

SEED = 0
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
            SettingsError: The study is of another sweep, or the storage cannot be opened.
        """
        self._sweep = sweep
        self._folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            self._folder_id = folder_id(folder)
            self._study = _open_study(sweep, folder, storage)
        self._claimed: set[int] = set()  # trials claimed by this runner before, some of them stopped since

    def trials(self) -> list[Trial]:
        """Return all trials in the order of their start."""
        return trials_of(self._study, self._sweep)

    def claim(self, *, num_trials: int) -> "ClaimedTrial | None":
        """Claim an interrupted trial, or a new one if there are fewer than `num_trials`; None if all are taken."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get("mark") == self._folder_id and frozen.number not in self._claimed:
                trial = self._try_claim(frozen.number, num_trials)
                if trial:
                    return trial
        while len(_kept(self._study)) < num_trials:
            trial = self._try_claim(self._create_trial(), num_trials)
            if trial:
                return trial
        return None

    def _create_trial(self) -> int:
        attributes = {"mark": self._folder_id, "claim": uuid.uuid4().hex}
        self._study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        trials = self._study.get_trials(deepcopy=False)
        return next(trial.number for trial in reversed(trials) if trial.user_attrs.get("claim") == attributes["claim"])

    def _try_claim(self, number: int, num_trials: int) -> "ClaimedTrial | None":
        """Return the trial if its lock is free, it has not ended, and it is among the first `num_trials`."""
        folder = self._folder / f"trial-{number:04d}"
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / ".claimed", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        frozen = self._study.get_trials(deepcopy=False)[number]
        before = [trial for trial in _kept(self._study) if trial.number < number]
        if frozen.state != TrialState.RUNNING or len(before) >= num_trials:
            if frozen.state == TrialState.RUNNING:
                self._discard(number)
            lock.release()
            return None
        self._claimed.add(number)  # a trial that this runner stops is for the next runner
        self._study.sampler = _sampler(self._sweep, index=len(before), number=number, num_trials=num_trials)
        return ClaimedTrial(optuna.Trial(self._study, frozen._trial_id), self._sweep, folder, lock)

    def _discard(self, number: int) -> None:
        self._study.set_user_attr(f"surplus-{number}", True)
        self._study.tell(number, state=TrialState.FAIL)


class ClaimedTrial:
    """A trial that only this process may run, until `finish` or the end of the process."""

    def __init__(self, trial: optuna.Trial, sweep: Sweep, folder: Path, lock: FileLock) -> None:
        self._trial = trial
        self._lock = lock
        self.folder = folder
        self.number = trial.number
        self.parameters = {name: space.value(_draw(trial, name, space)) for name, space in sweep.searched.items()}
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._num_reported = len(frozen.intermediate_values)
        self._seconds_before = float(frozen.user_attrs.get("seconds", 0))
        trial.set_user_attr("folder", str(folder))
        trial.set_user_attr("stopped", False)

    def report(self, values: Sequence[float], *, seconds: float) -> bool:
        """Record the values of the metric and return whether the trial should be stopped early.

        Args:
            values: All values so far; each counts as one iteration, as it does for W&B.
            seconds: Wall time since the claim.
        """
        if len(values) <= self._num_reported:
            return False
        should_prune = False
        for step in range(self._num_reported + 1, len(values) + 1):
            self._trial.report(values[step - 1], step)
            self._num_reported = step
            should_prune = should_prune or self._trial.should_prune()
        self._trial.set_user_attr("seconds", self._seconds_before + seconds)
        return should_prune

    def finish(
        self, state: State, *, value: float | None, curve: Sequence[tuple[float, float]], seconds: float, reason: str
    ) -> None:
        """Record the end of the trial, or with `stopped` that it is to be continued, and release it."""
        for name, attribute in (("curve", curve), ("seconds", self._seconds_before + seconds), ("reason", reason)):
            self._trial.set_user_attr(name, attribute)
        study, number = self._trial.study, self._trial.number
        if state == "finished":
            study.tell(number, value)
        elif state == "pruned":
            study.tell(number, state=TrialState.PRUNED)
        elif state == "failed":
            study.tell(number, state=TrialState.FAIL)
        else:
            self._trial.set_user_attr("stopped", True)
        self._lock.release()


def read_trials(sweep: Sweep, folder: Path, *, storage: str | None) -> list[Trial]:
    """Return the trials of an existing sweep, without changing anything.

    Raises:
        InputError: There is no such sweep in the folder or the storage.
    """
    if storage is None and not (folder / JOURNAL).exists():
        raise InputError(f"{folder}: no {JOURNAL} there; give the folder of a sweep, or --storage as in its run")
    try:
        study = optuna.load_study(study_name=sweep.name, storage=open_storage(folder, storage))
    except KeyError:
        raise InputError(f"{folder}: the storage has no sweep {sweep.name!r}; give --storage as in its run") from None
    return trials_of(study, sweep)


def trials_of(study: optuna.Study, sweep: Sweep) -> list[Trial]:
    """Return the trials of a study."""
    return [_as_trial(frozen, sweep) for frozen in _kept(study)]


def _as_trial(frozen: FrozenTrial, sweep: Sweep) -> Trial:
    attributes, reported = frozen.user_attrs, frozen.intermediate_values
    last = reported[max(reported)] if reported else None
    value = frozen.value if frozen.state == TrialState.COMPLETE else last
    return Trial(
        number=frozen.number,
        state="stopped" if attributes.get("stopped") else STATES[frozen.state],
        parameters={name: sweep.searched[name].value(drawn) for name, drawn in frozen.params.items()},
        value=None if value is None or math.isnan(value) else value,
        curve=tuple((epoch, value) for epoch, value in attributes.get("curve", [])),
        seconds=float(attributes.get("seconds", 0)),
        where=str(attributes.get("folder", "")),
        reason=str(attributes.get("reason", "")),
    )


def _kept(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials without those discarded as surplus."""
    attributes = study.user_attrs
    return [trial for trial in study.get_trials(deepcopy=False) if f"surplus-{trial.number}" not in attributes]


def _open_study(sweep: Sweep, folder: Path, storage: str | None) -> optuna.Study:
    study = optuna.create_study(
        study_name=sweep.name,
        storage=open_storage(folder, storage),
        load_if_exists=True,
        direction=sweep.goal,
        pruner=_pruner(sweep),
    )
    identity = json.dumps(sweep.identity(), sort_keys=True)
    before = study.user_attrs.get("sweep")
    if before is None:
        study.set_user_attr("sweep", identity)
    elif before != identity:
        changed = [key for key, value in json.loads(before).items() if value != json.loads(identity)[key]]
        raise SettingsError(
            f"{folder}: holds a sweep {sweep.name!r} with other {', '.join(changed)}; "
            "give another --dir (and, with --storage, another `name:`), or the file as it was"
        )
    return study


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """Return the pruner: W&B's `hyperband` is one bracket of successive halving.

    Optuna's HyperbandPruner has several brackets. A sweep's few trials would be divided among them, and both pruner and
    sampler would use only the trials of their own bracket (Li et al. 2018, https://arxiv.org/abs/1810.05934).
    """
    if sweep.halving is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=sweep.halving.first_rung, reduction_factor=sweep.halving.factor
    )


def _sampler(sweep: Sweep, *, index: int, number: int, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial: a new one for each, or a restarted sweep would draw its first settings again."""
    seed = seed_for(SEED, "sweep", number) >> 32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sweep.method == "bayes":
            # Multivariate: a high LR needs a low weight decay. The constant liar keeps parallel trials apart.
            startup = min(10, max(4, num_trials // 3))
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup
            )
        plain = optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.PartialFixedSampler(sweep.grid()[index], plain) if sweep.method == "grid" else plain


def _draw(trial: optuna.Trial, name: str, space: Space) -> Any:
    """Draw the number or option of one parameter; a trial that is continued gets the same again."""
    if isinstance(space, Choice):
        if space.probabilities is None:
            return trial.suggest_categorical(name, list(space.values))
        return trial.suggest_float(name, 0, 1)
    if space.whole:
        return trial.suggest_int(name, int(space.low), int(space.high))
    return trial.suggest_float(name, space.low, space.high, log=space.log)
