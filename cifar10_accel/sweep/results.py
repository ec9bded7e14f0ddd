"""Results of a sweep: a table, results.csv, and best.yaml, a recipe of the best trial."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from cifar10_accel.files import output_of, read_yaml, write_text
from cifar10_accel.formatting import format_metric, format_seconds, format_short
from cifar10_accel.recipes import read_recipe
from cifar10_accel.runs.reproduce import OF_THE_PLACE, launch_words, thread_flags
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.runs.trial import Goal, Parameter, Rerun, SweepView, Trial
from cifar10_accel.settings import Settings
from cifar10_accel.sweep.file import Sweep


def best_of(trials: Sequence[Trial], goal: Goal) -> Trial | None:
    """Return the finished trial with the best value, the first of equal ones; None if none finished."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return _by_value(finished, goal)[0] if finished else None


def table(view: SweepView) -> Table:
    """Return a table of all trials, the best first, for the terminal."""
    names, metric = _parameter_names(view.trials), view.metric
    result = Table("trial", "state", metric, "time", *names, "reason", title=view.title, title_justify="left")
    for trial in _by_value(view.trials, view.goal):
        values = [format_short(trial.parameters[name]) if name in trial.parameters else "" for name in names]
        seconds = format_seconds(trial.seconds)
        value = format_metric(metric, trial.value)
        result.add_row(str(trial.number), trial.state, value, seconds, *values, trial.reason)
    return result


def write_results(view: SweepView, folder: Path, *, constants: Mapping[str, Parameter] | None) -> Rerun | None:
    """Write results.csv and, if a trial finished and the sweep's constants are known, best.yaml.

    Returns:
        The command that trains best.yaml, from any folder; None if it was not written.

    Raises:
        OutOfResourcesError: The disk is full.
        SettingsError: The folder cannot be written for another reason.
    """
    best = best_of(view.trials, view.goal)
    with output_of(None, folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "results.csv", as_csv(view))
        if best is None or constants is None:
            return None
        path = folder.resolve() / "best.yaml"
        write_text(path, as_recipe(best, path, metric=view.metric, constants=constants))
        return Rerun(best.number, train_command(best, path))


def copy_sweep_file(sweep: Sweep, file: Path, folder: Path) -> None:
    """Copy the sweep file, with the sweep's name, to sweep.yaml in its folder, for later reports."""
    values = {"name": sweep.name} | read_yaml(file)
    write_text(folder / "sweep.yaml", yaml.safe_dump(values, sort_keys=False))


def as_csv(view: SweepView) -> str:
    """Return the trials as CSV, one line each, in the order of their start."""
    names = _parameter_names(view.trials)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["trial", "state", view.metric, "seconds", *names, "where", "reason"])
    for trial in view.trials:
        values = [trial.parameters.get(name, "") for name in names]
        lines.writerow(
            [trial.number, trial.state, trial.value, f"{trial.seconds:.1f}", *values, trial.where, trial.reason]
        )
    return text.getvalue()


def as_recipe(best: Trial, path: Path, *, metric: str, constants: Mapping[str, Parameter]) -> str:
    """Return the recipe that repeats a trial: all settings of its run that are not the default.

    Those are the sweep's recipe and constants, the trial's parameters, and what the environment set.
    """
    kept = yaml.safe_dump(_settings_of(best, constants), sort_keys=False)
    return (
        f"# {train_command(best, path)}\n"
        f"# The best of a sweep: trial {best.number} reached {metric} {format_metric(metric, best.value)}, "
        "in one run and chosen among all trials:\n"
        "# expect slightly less with other seeds. For a final run: more --epochs, and --val-size 0 for all images.\n"
        f"{kept}"
    )


def train_command(trial: Trial, recipe: Path) -> str:
    """Return the command that trains a recipe as a trial was trained: its number of processes and threads."""
    environment = RunFolder(Path(trial.where)).read_json("environment.json")
    return shlex.join([*launch_words(environment), "--recipe", str(recipe), *thread_flags(environment)])


def _settings_of(trial: Trial, constants: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the settings of a trial that are not of the machine: as its run recorded them, else as they were given."""
    given = {**constants, **trial.parameters}
    run = RunFolder(Path(trial.where))
    if trial.where and (run.path / "settings.yaml").exists():
        settings = run.settings()
        values = settings.model_dump(mode="json", exclude=set(settings.unused()))
        defaults = Settings.stored({"recipe": "auto"}).model_dump(mode="json")
        values = {name: value for name, value in values.items() if value != defaults[name] or name in given}
    else:
        values = read_recipe(str(given["recipe"])) | given if "recipe" in given else given
    return {name: value for name, value in values.items() if name.partition(".")[0] not in OF_THE_PLACE | {"recipe"}}


def _by_value(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    sign = -1 if goal == "maximize" else 1
    return sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0), trial.number))


def _parameter_names(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.parameters))
