"""The search itself, on Optuna: which settings to try next, who tries them, and which trials to give up.

The storage (a journal file in the sweep's folder, or a database) is the only record of a sweep, and every
runner of it, on one machine or many, works on that record. Three rules keep N trials exactly N:

- A trial is made and claimed in one operation: it enters the storage as running, with the mark of the
  folder that holds it. The storage numbers trials in one order, so of two runners that both want the last
  one, the second sees that it is surplus and strikes it.
- Whoever holds the lock file in a trial's folder runs it. The kernel frees the lock of a killed runner, so the
  next runner of that folder continues the trial under its number. (Optuna's heartbeats exist only for
  databases, take minutes, and replace a dead trial by a new one.) Other folders' trials are left alone.
- What a trial draws depends on its number alone and on the results so far, so a sweep that is started again,
  or by two at once, draws nothing twice.
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
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.spaces import Choice, Space
from cifar10_accel.sweep.storage import JOURNAL, mark_of, open_storage
from cifar10_accel.trials import State, Trial

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
    """One sweep's record, and what to try next. Several processes may hold one for the same sweep."""

    def __init__(self, sweep: Sweep, folder: Path, *, storage: str | None) -> None:
        """Opens the record, or begins it. Raises `SettingsError` if there is one of another sweep, or no storage."""
        self._sweep = sweep
        self._folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            self._mark = mark_of(folder)
            self._study = _begin(sweep, folder, storage)
        self._left: set[int] = set()

    def trials(self) -> list[Trial]:
        """What is known of every trial, in the order of their start."""
        return trials_of(self._study, self._sweep)

    def claim(self, *, num_trials: int) -> "Claimed | None":
        """A trial that nobody else runs: one that was left in the middle, or a new one while there are too few."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get("mark") == self._mark and frozen.number not in self._left:
                claimed = self._take(frozen.number, num_trials)
                if claimed:
                    return claimed
        while len(_kept(self._study)) < num_trials:
            claimed = self._take(self._begin_trial(), num_trials)
            if claimed:
                return claimed
        return None

    def _begin_trial(self) -> int:
        marks = {"mark": self._mark, "claim": uuid.uuid4().hex}
        self._study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=marks))
        trials = self._study.get_trials(deepcopy=False)
        return next(trial.number for trial in reversed(trials) if trial.user_attrs.get("claim") == marks["claim"])

    def _take(self, number: int, num_trials: int) -> "Claimed | None":
        """The trial, if its lock is free, it still runs, and it is among the first `num_trials`."""
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
                self._strike(number)
            lock.release()
            return None
        self._left.add(number)  # also if it is stopped: this runner has done with it then
        self._study.sampler = _sampler(self._sweep, place=len(before), number=number, num_trials=num_trials)
        return Claimed(optuna.Trial(self._study, frozen._trial_id), self._sweep, folder, lock)

    def _strike(self, number: int) -> None:
        self._study.set_user_attr(f"surplus-{number}", True)
        self._study.tell(number, state=TrialState.FAIL)


class Claimed:
    """A trial that this process alone may run, from its claim to its end or until it is left."""

    def __init__(self, trial: optuna.Trial, sweep: Sweep, folder: Path, lock: FileLock) -> None:
        self._trial = trial
        self._lock = lock
        self.folder = folder
        self.number = trial.number
        self.parameters = {name: space.value(_drawn(trial, name, space)) for name, space in sweep.searched.items()}
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._num_reported = len(frozen.intermediate_values)
        self._seconds_before = float(frozen.user_attrs.get("seconds", 0))
        trial.set_user_attr("folder", str(folder))
        trial.set_user_attr("stopped", False)

    def report(self, values: Sequence[float], *, seconds: float) -> bool:
        """Records the values of the metric so far, all of them, and says whether the trial should be given up.

        A value counts as one iteration, as it does for W&B. `seconds` is the wall time since the claim.
        """
        if len(values) <= self._num_reported:
            return False
        give_up = False
        for step in range(self._num_reported + 1, len(values) + 1):
            self._trial.report(values[step - 1], step)
            self._num_reported = step
            give_up = give_up or self._trial.should_prune()
        self._trial.set_user_attr("seconds", self._seconds_before + seconds)
        return give_up

    def finish(
        self, state: State, *, value: float | None, curve: Sequence[tuple[float, float]], seconds: float, reason: str
    ) -> None:
        """Records the end of the trial, or with `stopped` that it is to be continued, and frees it."""
        for name, what in (("curve", curve), ("seconds", self._seconds_before + seconds), ("reason", reason)):
            self._trial.set_user_attr(name, what)
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
    """The trials of a sweep that was begun, without touching anything; `InputError` if there is none."""
    if storage is None and not (folder / JOURNAL).exists():
        raise InputError(f"{folder}: no {JOURNAL} there; give the folder of a sweep, or --storage as it was run with")
    try:
        study = optuna.load_study(study_name=sweep.name, storage=open_storage(folder, storage))
    except KeyError:
        raise InputError(f"{folder}: the storage has no sweep {sweep.name!r}; give --storage as it was run") from None
    return trials_of(study, sweep)


def trials_of(study: optuna.Study, sweep: Sweep) -> list[Trial]:
    """A study's trials in the form that results and pages take."""
    return [_as_trial(frozen, sweep) for frozen in _kept(study)]


def _as_trial(frozen: FrozenTrial, sweep: Sweep) -> Trial:
    notes, seen = frozen.user_attrs, frozen.intermediate_values
    last = seen[max(seen)] if seen else None
    value = frozen.value if frozen.state == TrialState.COMPLETE else last
    return Trial(
        number=frozen.number,
        state="stopped" if notes.get("stopped") else STATES[frozen.state],
        parameters={name: sweep.searched[name].value(drawn) for name, drawn in frozen.params.items()},
        value=None if value is None or math.isnan(value) else value,
        curve=tuple((epoch, value) for epoch, value in notes.get("curve", [])),
        seconds=float(notes.get("seconds", 0)),
        where=str(notes.get("folder", "")),
        reason=str(notes.get("reason", "")),
    )


def _kept(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: all but those struck as surplus."""
    marks = study.user_attrs
    return [trial for trial in study.get_trials(deepcopy=False) if f"surplus-{trial.number}" not in marks]


def _begin(sweep: Sweep, folder: Path, storage: str | None) -> optuna.Study:
    study = optuna.create_study(
        study_name=sweep.name, storage=open_storage(folder, storage), load_if_exists=True, direction=sweep.goal,
        pruner=_pruner(sweep),
    )  # fmt: skip
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
    """W&B's `hyperband` is one bracket of successive halving.

    Optuna's HyperbandPruner has several: a sweep's few trials would be spread over them, each compared only with
    its own, and the sampler too would learn only from its own (Li et al. 2018, https://arxiv.org/abs/1810.05934).
    """
    if sweep.halving is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=sweep.halving.first_rung, reduction_factor=sweep.halving.factor
    )


def _sampler(sweep: Sweep, *, place: int, number: int, num_trials: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial; a fresh one for each, or a sweep started again would draw its first settings again."""
    seed = seed_for(SEED, "sweep", number) >> 32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sweep.method == "bayes":
            # Parameters together: a high LR wants a low weight decay. The liar keeps parallel trials apart.
            startup = min(10, max(4, num_trials // 3))
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup
            )
        plain = optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.PartialFixedSampler(sweep.grid()[place], plain) if sweep.method == "grid" else plain


def _drawn(trial: optuna.Trial, name: str, space: Space) -> Any:
    """What the search draws for one parameter; drawn before, it is the same again."""
    if isinstance(space, Choice):
        if space.probabilities is None:
            return trial.suggest_categorical(name, list(space.values))
        return trial.suggest_float(name, 0, 1)
    if space.whole:
        return trial.suggest_int(name, int(space.low), int(space.high))
    return trial.suggest_float(name, space.low, space.high, log=space.log)
