"""Importance of each parameter of a sweep (PED-ANOVA)."""

import math
import warnings
from collections.abc import Sequence

import optuna

from cifar10_accel.runs.trial import Goal, Parameter, Trial

MIN_TRIALS = 8  # with fewer, the best quarter is a single trial or none
BEST_SHARE = 0.25
METHOD = "PED-ANOVA: how far the values of the best quarter of the trials lie from those of all"


def importance_of(trials: Sequence[Trial], goal: Goal) -> dict[str, float]:
    """Return the importance of each parameter for reaching the best quarter of the finished trials; sums to 1.

    Watanabe et al. 2023, https://arxiv.org/abs/2304.10255. Computed from the trials alone, not from a stored study, so
    it works for sweeps that W&B ran too.

    Returns:
        Shares by parameter; empty if fewer than MIN_TRIALS finished or all values are equal.
    """
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    shared = [
        name
        for name in (finished[0].parameters if finished else {})
        if all(name in trial.parameters for trial in finished)
    ]
    spaces = {name: _space([trial.parameters[name] for trial in finished]) for name in shared}
    spaces = {name: space for name, space in spaces.items() if not space.single()}
    if len(finished) < MIN_TRIALS or not spaces or len({trial.value for trial in finished}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction=goal)
        for trial in finished:
            drawn = {name: trial.parameters[name] for name in spaces}
            study.add_trial(optuna.create_trial(params=drawn, distributions=spaces, value=trial.value))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return shares if math.isclose(sum(shares.values()), 1, rel_tol=1e-3) else {}


def _space(values: Sequence[Parameter]) -> optuna.distributions.BaseDistribution:
    """Return the space that contains these values: categories, or numbers, on a log scale beyond a factor of ten."""
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(numbers), max(numbers)
    return optuna.distributions.FloatDistribution(low, high, log=0 < 10 * low < high)
