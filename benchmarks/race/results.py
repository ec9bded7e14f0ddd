"""Results of the race: the file that a repeated command continues from, the table and the picture."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.trainings import percent
from cifar10_accel.errors import SettingsError
from cifar10_accel.files import write_text

TOLERANCE = 1.1  # times the budget; who trains longer is not compared
PRECISIONS = {"no": "float32", "bf16": "bf16 autocast"}


@dataclass(frozen=True, kw_only=True)
class RaceResult:
    """One training of a contestant; accuracies are 0..1, on the test set."""

    trained: str  # recipe or model
    precision: str  # key of PRECISIONS
    plain: float
    tta: float | None  # None: the contestant has no TTA
    seconds: float  # of training, without evaluation
    num_images: int  # trained on, counted each time
    epochs: float
    points: list[tuple[float, float]]  # seconds of training and plain accuracy along the way; the last is the end

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the result that `asdict` gave."""
        points = [(float(seconds), float(accuracy)) for seconds, accuracy in values["points"]]
        return cls(**dict(values) | {"points": points})

    @property
    def best(self) -> float:
        """The higher accuracy of the plain one and the one with TTA."""
        return max(self.plain, self.tta or 0.0)


class RaceFile:
    """race.json: the conditions of a race, and the results so far by contestant.

    Args:
        path: The file.
        conditions: Those of this command.

    Raises:
        SettingsError: The file has a race under other conditions.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._path, self._conditions = path, json.loads(json.dumps(conditions, default=str))
        found = json.loads(path.read_text()) if path.exists() else {"conditions": self._conditions, "results": {}}
        for name, value in self._conditions.items():
            if found["conditions"].get(name) != value:
                raise SettingsError(
                    f"out: {path.parent} has a race with {name} {found['conditions'].get(name)}, this one has {value}; "
                    "give another --out"
                )
        self.results = {name: RaceResult.from_json(values) for name, values in found["results"].items()}

    def add(self, name: str, result: RaceResult) -> None:
        """Add the result of a contestant and write the file."""
        self.results[name] = result
        results = {name: asdict(result) for name, result in self.results.items()}
        write_text(self._path, json.dumps({"conditions": self._conditions, "results": results}, indent=2) + "\n")


def table(results: Mapping[str, RaceResult], remarks: Mapping[str, str], *, budget: float) -> str:
    """Return a table of all contestants, and who is first of those that kept to the budget.

    Args:
        results: By contestant.
        remarks: For the contestants without a result, why they have none.
        budget: Seconds of training.
    """
    lines = [
        "| contestant | trained | precision | plain | with TTA | seconds | images/s | epochs |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in results.items():
        cells = [name, one.trained, PRECISIONS[one.precision], percent(one.plain)]
        is_late = one.seconds > TOLERANCE * budget
        cells += ["-" if one.tta is None else percent(one.tta), f"{one.seconds:,.1f}{' (too long)' if is_late else ''}"]
        cells += [f"{one.num_images / one.seconds:,.0f}", f"{one.epochs:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | {remark} | | | | | | |" for name, remark in remarks.items()]
    in_time = {name: one for name, one in results.items() if one.seconds <= TOLERANCE * budget}
    if len(in_time) > 1:
        lines += ["", _lead(in_time, "plain"), _lead(in_time, "best")]
    return "\n".join(lines)


def draw(results: Mapping[str, RaceResult], path: Path, *, title: str) -> None:
    """Draw plain accuracy against seconds of training, and a star for the final accuracy with TTA; write a PNG."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, one in results.items():
        seconds, plain = zip(*one.points, strict=True)
        (line,) = axes.plot(seconds, [100 * value for value in plain], marker="o", markersize=3.5, label=name)
        if one.tta is not None:
            axes.plot([one.seconds], [100 * one.tta], marker="*", markersize=11, color=line.get_color(), linestyle="")
    axes.set(xlabel="seconds of training", ylabel="test accuracy in %, plain (star: with TTA)", title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def _lead(results: Mapping[str, RaceResult], which: str) -> str:
    """Return by how much the first contestant leads, in percentage points."""
    first, second, *_ = sorted(results, key=lambda name: -float(getattr(results[name], which)))
    points = 100 * (getattr(results[first], which) - getattr(results[second], which))
    title = "plain" if which == "plain" else "with TTA where a contestant has it"
    return f"- first {title}: {first}, {points:.2f} points before {second}"
