"""W&B sweep files, checked before any trial starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.files import read_yaml
from cifar10_accel.runs.trial import Goal, Parameter, SweepView, Trial
from cifar10_accel.settings import Settings
from cifar10_accel.sweep.agent_command import check_command
from cifar10_accel.sweep.spaces import Choice, Space, read_space

Method = Literal["grid", "random", "bayes"]
METRICS = ("val/accuracy", "val/loss", "train/accuracy", "train/loss")
# The keys of W&B's schema; those that are not read here are for W&B's own agents and pages.
KEYS = (
    "apiVersion",
    "kind",
    "controller",
    "description",
    "program",
    "job",
    "image_uri",
    "entity",
    "project",
    "method",
    "command",
    "name",
    "run_cap",
    "metric",
    "metrics",
    "scheduler",
    "early_terminate",
    "parameters",
)
# Keys with which W&B does something else than a local sweep would: what it does, and what to give instead.
NOT_LOCAL = {
    "job": ("W&B starts another program", "command"),
    "image_uri": ("W&B starts another program", "command"),
    "scheduler": ("W&B takes the trials from another search", "method"),
    "metrics": ("W&B compares trials by several metrics", "metric"),
}
METRIC_KEYS = ("name", "goal")
SET_BY_SWEEP = ("run_dir", "run_name")


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Early termination: at each rung, `first_rung * factor**k` metric values, only the best 1/factor continue."""

    first_rung: int
    factor: int
    last_rung: int | None = None  # None: there is no last one


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A valid sweep file."""

    name: str
    method: Method
    metric: str
    goal: Goal
    constants: dict[str, Parameter]
    searched: dict[str, Space]
    halving: Halving | None
    run_cap: int | None

    def grid(self) -> list[dict[str, Parameter]]:
        """Return all points of a grid, in the order of the file; the last parameter changes fastest."""
        values = [cast(list[Parameter], space.every_value()) for space in self.searched.values()]
        return [dict(zip(self.searched, setting, strict=True)) for setting in product(*values)]

    def identity(self) -> dict[str, Any]:
        """Return, as plain values, all that must not change when a sweep is continued."""
        values = {key: value for key, value in asdict(self).items() if key not in ("name", "run_cap")}
        if self.halving is not None and self.halving.last_rung is None:
            del values["halving"]["last_rung"]  # as earlier versions, which knew no last rung
        return values

    def view(self, trials: Sequence[Trial]) -> SweepView:
        """Return the sweep with these trials, for tables and pages."""
        return SweepView(title=self.name, metric=self.metric, goal=self.goal, trials=tuple(trials))


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in a W&B YAML file.

    Every pair of extreme values is validated by `Settings`.

    Raises:
        SettingsError: One line with the file's name: unknown keys or parameters, an invalid method, metric or
            distribution, reversed bounds, or a setting out of its range.
    """
    values = read_yaml(path)
    try:
        sweep = _sweep(values, name=str(values.get("name") or path.stem))
        _check_settings(sweep)
    except SettingsError as error:
        raise SettingsError(f"{path}: {str(error).splitlines()[0]}") from None
    return sweep


def num_trials_of(sweep: Sweep, given: int | None) -> int:
    """Return the number of trials to run: as given, else the file's run_cap; at most the size of the grid."""
    most = given or sweep.run_cap
    if sweep.method == "grid":
        size = len(sweep.grid())
        return min(most or size, size)
    if most is None:
        raise SettingsError(f"trials: {sweep.name} has no run_cap and {sweep.method} no end; give --trials N")
    return most


def _sweep(values: Mapping[str, Any], *, name: str) -> Sweep:
    for key in values:
        if key not in KEYS:
            raise SettingsError(f"{key}: no such key{did_you_mean(key, list(KEYS))}; W&B's are {', '.join(KEYS)}")
    if {"/", "\\"} & set(name) or name.startswith("."):
        raise SettingsError(f"name: {name!r} cannot be a folder name; leave out slashes and a leading dot")
    for key, (effect, instead) in NOT_LOCAL.items():
        if key in values:
            raise SettingsError(f"{key}: {effect}, which a local sweep does not; leave it out and give {instead}")
    method = values.get("method")
    if method not in get_args(Method):
        hint = did_you_mean(str(method), list(get_args(Method)))
        raise SettingsError(f"method: {method!r}{hint}; give {', '.join(get_args(Method))}")
    metric, goal = _metric(values)
    spaces = _spaces(values.get("parameters"))
    with_false = next((name for name, space in spaces.items() if _may_be_false(space)), None)
    check_command(values, names=spaces, with_false=with_false)
    sweep = Sweep(
        name=name,
        method=cast(Method, method),
        metric=metric,
        goal=goal,
        constants={name: space.corners()[0] for name, space in spaces.items() if _is_constant(space)},
        searched={name: space for name, space in spaces.items() if not _is_constant(space)},
        halving=_halving(values.get("early_terminate")),
        run_cap=None if values.get("run_cap") is None else _count("run_cap", values["run_cap"]),
    )
    _check_search(sweep)
    return sweep


def _metric(values: Mapping[str, Any]) -> tuple[str, Goal]:
    metric = values.get("metric")
    if not isinstance(metric, Mapping) or "name" not in metric:
        raise SettingsError("metric: missing; give `metric: {name: val/accuracy, goal: maximize}`")
    for key in metric:
        if key not in METRIC_KEYS:
            raise SettingsError(f"metric: W&B acts on {key!r} and a local sweep does not; give name and goal alone")
    name, goal = str(metric["name"]), metric.get("goal")
    if name.startswith("test/"):
        raise SettingsError(f"metric: {name} would select on the test set; give val/accuracy, and val_size a value")
    if name not in METRICS:
        raise SettingsError(f"metric: no {name!r}{did_you_mean(name, list(METRICS))}; there are {', '.join(METRICS)}")
    if goal not in get_args(Goal):
        raise SettingsError(f"metric: goal is {goal!r} (W&B would minimize); give maximize or minimize")
    return name, cast(Goal, goal)


def _spaces(parameters: Any) -> dict[str, Space]:
    if not isinstance(parameters, Mapping) or not parameters:
        raise SettingsError("parameters: missing; name at least one setting to search")
    known = list(Settings.model_fields)
    for name in parameters:
        setting, dot, _ = str(name).partition(".")  # model_args.depth is a value in a setting
        takes_keys = setting in known and get_origin(Settings.model_fields[setting].annotation) is dict
        if name not in known and not (dot and takes_keys):
            hint = did_you_mean(str(name), known)
            raise SettingsError(f"parameters: no setting {name!r}{hint}; `cifar10-accel train --help` lists all")
        if name in SET_BY_SWEEP:
            raise SettingsError(f"parameters: {name} cannot be given; the sweep sets it for each trial")
    return {str(name): read_space(str(name), given) for name, given in parameters.items()}


def _is_constant(space: Space) -> bool:
    return isinstance(space, Choice) and len(space.values) == 1


def _may_be_false(space: Space) -> bool:
    return isinstance(space, Choice) and any(value is False for value in space.values)


def _halving(given: Any) -> Halving | None:
    """Return the rungs of W&B's `hyperband`: at min_iter * eta**k, or the s rungs below max_iter."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or given.get("type") != "hyperband":
        raise SettingsError(f"early_terminate: {given!r}; give `type: hyperband` and `min_iter:`")
    for key in given:
        if key not in ("type", "min_iter", "max_iter", "s", "eta", "strict"):
            raise SettingsError(f"early_terminate: no key {key!r}; there are min_iter, max_iter, s, eta, strict")
    if ("min_iter" in given) == ("max_iter" in given):
        raise SettingsError("early_terminate: give one of min_iter, or max_iter with s")
    if given.get("strict", True) is not True:
        raise SettingsError(
            "early_terminate: strict is false, but local sweeps are strict, W&B's default; leave it out"
        )
    eta = _count("early_terminate: eta", given.get("eta", 3), least=2)
    if "min_iter" in given:
        return Halving(first_rung=_count("early_terminate: min_iter", given["min_iter"]), factor=eta)
    most, rungs = (_count(f"early_terminate: {key}", given.get(key)) for key in ("max_iter", "s"))
    if most < eta**rungs:
        raise SettingsError(f"early_terminate: max_iter {most} leaves no value before {rungs} rungs of eta {eta}")
    if most % eta**rungs:
        nearest = most - most % eta**rungs
        raise SettingsError(f"early_terminate: max_iter {most} is no multiple of {eta}**{rungs}; give {nearest}")
    return Halving(first_rung=most // eta**rungs, factor=eta, last_rung=most // eta)


def _count(name: str, value: Any, *, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise SettingsError(f"{name}: {value!r}; give a whole number of at least {least}")
    return value


def _check_search(sweep: Sweep) -> None:
    if sweep.halving is not None and sweep.metric.startswith("train/"):
        raise SettingsError(
            f"early_terminate: {sweep.metric} has several values an epoch, of a few batches each; give val/accuracy or "
            "val/loss"
        )
    if not sweep.searched:
        raise SettingsError("parameters: all are constants; give one `values:`, or `min:` and `max:`")
    if "recipe" not in sweep.constants.keys() | sweep.searched.keys() or "auto" in _values_of(sweep, "recipe"):
        raise SettingsError("parameters: a sweep on several machines needs one recipe; give `recipe: {value: resnet9}`")
    for name, space in sweep.searched.items():
        if sweep.method == "grid" and space.every_value() is None:
            raise SettingsError(f"{name}: a grid needs `values:` (or int_uniform, q_uniform), not a continuous range")
        if sweep.method == "grid" and isinstance(space, Choice) and space.probabilities:
            raise SettingsError(
                f"{name}: a grid tries every value once; leave probabilities out, or give method random"
            )


def _values_of(sweep: Sweep, name: str) -> list[Parameter]:
    return sweep.searched[name].corners() if name in sweep.searched else [sweep.constants[name]]


def _check_settings(sweep: Sweep) -> None:
    for values in _corner_settings(sweep):
        settings = Settings(**(sweep.constants | values))
        if settings.has_open_length:
            raise SettingsError(
                "time_budget: it could give each trial another number of epochs; give `epochs:`, such as those of one "
                "run with the time budget"
            )
        may_have_hold_out = settings.val_size > 0 or settings.is_own_dataset
        if sweep.metric.startswith("val/") and not may_have_hold_out:
            raise SettingsError(f"metric: {sweep.metric} needs a hold-out; give `val_size: {{value: 5000}}`")


def _corner_settings(sweep: Sweep) -> Iterator[dict[str, Parameter]]:
    """Yield all pairs of two parameters' extreme values, the others at their first; no check involves three."""
    corners = {name: space.corners() for name, space in sweep.searched.items()}
    first = {name: values[0] for name, values in corners.items()}
    pairs = list(combinations(corners, 2)) or [(name, name) for name in corners]
    for one, other in pairs:
        for value, other_value in product(corners[one], corners[other]):
            yield first | {one: value, other: other_value}
