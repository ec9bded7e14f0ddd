"""Results of the race: the file that a repeated command continues from, the table and the picture."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from scipy import stats  # type: ignore[import-untyped]

from benchmarks.trainings import percent
from cifar10_accel.commands.statistics import CONFIDENCE
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


Results = Mapping[str, Mapping[int, RaceResult]]  # by contestant and seed; at least one of each contestant


class RaceFile:
    """race.json: the conditions of a race, and the results so far by contestant and seed.

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
        self.results: dict[str, dict[int, RaceResult]] = {
            name: {int(seed): RaceResult.from_json(values) for seed, values in runs.items()}
            for name, runs in found["results"].items()
        }

    def add(self, name: str, seed: int, result: RaceResult) -> None:
        """Add the result of a contestant with a seed and write the file."""
        self.results.setdefault(name, {})[seed] = result
        results = {name: {seed: asdict(one) for seed, one in runs.items()} for name, runs in self.results.items()}
        write_text(self._path, json.dumps({"conditions": self._conditions, "results": results}, indent=2) + "\n")


def table(results: Results, remarks: Mapping[str, str], *, budget: float) -> str:
    """Return a table of all contestants, and who is first of those that kept to the budget.

    Args:
        results: By contestant and seed.
        remarks: For the contestants without a result, why they have none.
        budget: Seconds of training.

    Returns:
        Markdown. Means over seeds, with the standard deviation of a single run for accuracies.
    """
    lines = [
        "| contestant | trained | precision | runs | plain | with TTA | seconds | images/s | epochs |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    in_time = {}
    for name, by_seed in results.items():
        runs = list(by_seed.values())
        if is_in_time := all(one.seconds <= TOLERANCE * budget for one in runs):
            in_time[name] = runs
        seconds = statistics.fmean(one.seconds for one in runs)
        cells = [name, _texts(one.trained for one in runs), _texts(PRECISIONS[one.precision] for one in runs)]
        cells += [str(len(runs)), _accuracy([one.plain for one in runs]), _accuracy([one.tta for one in runs])]
        cells += [f"{seconds:,.1f}{'' if is_in_time else ' (too long)'}"]
        cells += [f"{statistics.fmean(one.num_images / one.seconds for one in runs):,.0f}"]
        cells += [f"{statistics.fmean(one.epochs for one in runs):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | {remark} | | | | | | | |" for name, remark in remarks.items()]
    if len(in_time) > 1:
        lines += ["", _lead(in_time, "plain"), _lead(in_time, "best")]
    return "\n".join(lines)


def draw(results: Results, path: Path, *, title: str) -> None:
    """Draw plain accuracy against seconds of training, and a star for the final accuracy with TTA; write a PNG."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, runs) in enumerate(results.items()):
        color, label = f"C{number}", name
        for one in runs.values():
            seconds, plain = zip(*one.points, strict=True)
            axes.plot(seconds, [100 * value for value in plain], marker="o", markersize=3.5, label=label, color=color)
            if one.tta is not None:
                axes.plot([one.seconds], [100 * one.tta], marker="*", markersize=11, color=color, linestyle="")
            label = ""  # one entry of the legend for all seeds
    axes.set(xlabel="seconds of training", ylabel="test accuracy in %, plain (star: with TTA)", title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def _texts(values: Iterable[str]) -> str:
    """Return the different texts, in their order."""
    return ", ".join(dict.fromkeys(values))


def _accuracy(values: Sequence[float | None]) -> str:
    """Return the mean of accuracies, and their standard deviation if there are several; a dash if one is missing."""
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return "-"
    spread = f" ± {statistics.stdev(present):.2%}" if len(present) > 1 else ""
    return percent(statistics.fmean(present)) + spread


def _lead(results: Mapping[str, Sequence[RaceResult]], which: str) -> str:
    """Return by how much the first contestant leads, in percentage points, and how sure that is."""
    points = {name: [100 * float(getattr(one, which)) for one in runs] for name, runs in results.items()}
    first, second, *_ = sorted(points, key=lambda name: -statistics.fmean(points[name]))
    lead = statistics.fmean(points[first]) - statistics.fmean(points[second])
    title = "plain" if which == "plain" else "with TTA where a contestant has it"
    line = f"- first {title}: {first}, {lead:.2f} points before {second}"
    if min(len(points[first]), len(points[second])) < 2:
        return line
    if len({*points[first]}) == len({*points[second]}) == 1:  # without any spread there is no interval
        return line
    test = stats.ttest_ind(points[first], points[second], equal_var=False)  # Welch 1947
    low, high = test.confidence_interval(CONFIDENCE)
    return f"{line} ({CONFIDENCE:.0%} interval of the difference {low:+.2f} to {high:+.2f})"
