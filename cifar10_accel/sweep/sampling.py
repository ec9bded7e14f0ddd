"""Optuna's samplers and pruner for a sweep file."""

import warnings
from typing import Any

import optuna

from cifar10_accel.randomness import seed_for
from cifar10_accel.sweep.file import Sweep
from cifar10_accel.sweep.spaces import Choice, Space

SEED = 0


def pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """Return the pruner: W&B's `hyperband` is one bracket of successive halving.

    Optuna's HyperbandPruner has several brackets. A sweep's few trials would be divided among them, and both pruner and
    sampler would use only the trials of their own bracket (Li et al. 2018, https://arxiv.org/abs/1810.05934).
    """
    if sweep.halving is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=sweep.halving.first_rung, reduction_factor=sweep.halving.factor
    )


def sampler(sweep: Sweep, *, index: int, number: int, num_trials: int) -> optuna.samplers.BaseSampler:
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


def draw(trial: optuna.Trial, name: str, space: Space) -> Any:
    """Draw the number or option of one parameter; a trial that is continued gets the same again."""
    if isinstance(space, Choice):
        if space.probabilities is None:
            return trial.suggest_categorical(name, list(space.values))
        return trial.suggest_float(name, 0, 1)
    if space.whole:
        return trial.suggest_int(name, int(space.low), int(space.high))
    return trial.suggest_float(name, space.low, space.high, log=space.log)
