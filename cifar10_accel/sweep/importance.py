"""Which parameters of a sweep made the difference."""

import math
import warnings
from collections.abc import Sequence

import optuna

from cifar10_accel.sweep.file import Goal
from cifar10_accel.trials import Parameter, Trial

LEAST_TRIALS = 8  # with fewer the best quarter is a trial or none
BEST_SHARE = 0.25
METHOD = "PED-ANOVA: how far the values of the best quarter of the trials lie from those of all"


def importance_of(trials: Sequence[Trial], goal: Goal) -> dict[str, float]:
    """Each parameter's share of what sets the best quarter of the finished trials apart; the shares add up to 1.

    Empty if too few trials finished, or all alike (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255). It
    asks nothing of the sweep's own record, so that one that W&B ran is judged in the same way.
    """
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    shared = [name for name in (finished[0].parameters if finished else {})
              if all(name in trial.parameters for trial in finished)]  # fmt: skip
    spaces = {name: _space([trial.parameters[name] for trial in finished]) for name in shared}
    spaces = {name: space for name, space in spaces.items() if not space.single()}
    if len(finished) < LEAST_TRIALS or not spaces or len({trial.value for trial in finished}) == 1:
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
    """The space that these values seem to come from: numbers over more than a factor of ten on a log scale."""
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(numbers), max(numbers)
    return optuna.distributions.FloatDistribution(low, high, log=0 < 10 * low < high)
