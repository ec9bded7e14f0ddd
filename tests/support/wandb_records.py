"""Runs and sweeps of the fake W&B server."""

import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Any

import yaml

Rows = list[dict[str, Any]]


@dataclass
class Run:
    """One run, as its client has sent it."""

    name: str
    project: str = "p"
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: Rows = field(default_factory=list)
    events: Rows = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    num_starts: int = 0
    exit_code: int | None = None
    is_preempting: bool = False
    is_to_stop: bool = False  # set by the stop button and by early termination

    @property
    def state(self) -> str:
        if self.exit_code is None:
            return "running"
        if self.exit_code and self.is_preempting and not self.is_to_stop:
            return "preempted"
        return "failed" if self.exit_code else "finished"

    def values(self, name: str) -> list[Any]:
        """Return the history of one metric."""
        return [row[name] for row in self.history if name in row]

    def settings(self) -> dict[str, Any]:
        """Return the config without the entries that the client adds."""
        return {name: entry["value"] for name, entry in self.config.items() if name != "_wandb"}


@dataclass
class Sweep:
    """One sweep, which suggests at most `run_cap` settings, by grid or at random."""

    name: str
    project: str
    config: str  # YAML
    state: str = "RUNNING"
    suggested: list[dict[str, Any]] = field(default_factory=list)

    def suggest(self) -> dict[str, Any] | None:
        """Return the settings of the next trial; None if there are no more."""
        config = yaml.safe_load(self.config)
        number = len(self.suggested)
        if number >= config.get("run_cap", math.inf):
            return None
        if config["method"] == "grid":
            axes = {name: one.get("values", [one.get("value")]) for name, one in config["parameters"].items()}
            points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
            if number >= len(points):
                return None
            chosen = points[number]
        else:
            rng = random.Random(number)
            chosen = {name: _drawn(parameter, rng) for name, parameter in config["parameters"].items()}
        self.suggested.append(chosen)
        return chosen


def _drawn(parameter: dict[str, Any], rng: random.Random) -> Any:
    if "value" in parameter or "values" in parameter:
        return rng.choice(parameter.get("values", [parameter.get("value")]))
    if parameter["distribution"] == "log_uniform_values":
        return math.exp(rng.uniform(math.log(parameter["min"]), math.log(parameter["max"])))
    return rng.uniform(parameter["min"], parameter["max"])
