"""Trials of a sweep, as the runner, the results and the pages exchange them."""

from dataclasses import dataclass
from typing import Literal

Parameter = float | int | str | bool | None
State = Literal["running", "finished", "failed", "pruned", "stopped"]
Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of parameters that a sweep tried. `pruned`: ended early for being behind; `stopped`: to be continued."""

    number: int  # from 0, in the order of their start
    state: State
    parameters: dict[str, Parameter]  # by name of the setting
    value: float | None  # the final metric, or the latest so far; accuracies are in 0..1
    curve: tuple[tuple[float, float], ...]  # (epoch, metric), in order of epochs
    seconds: float  # wall time, summed over restarts
    where: str  # its run folder, or its URL in W&B
    reason: str = ""  # of a failure or pruning, in one line


@dataclass(frozen=True)
class Rerun:
    """The command that trains the best finished trial of a sweep again."""

    trial: int  # its number
    command: str


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep as tables and pages show it: its trials and the metric that compares them."""

    title: str
    metric: str  # name, such as val/accuracy
    goal: Goal
    trials: tuple[Trial, ...]  # in the order of their start
