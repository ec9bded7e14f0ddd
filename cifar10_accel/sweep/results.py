"""What a sweep leaves: a table, results.csv, and best.yaml, a recipe of the best trial. Reads only the trials."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.table import Table

from cifar10_accel.console import format_seconds
from cifar10_accel.errors import SettingsError
from cifar10_accel.recipes import read_recipe, read_yaml
from cifar10_accel.run_folder import RunFolder
from cifar10_accel.settings import Settings, TrackingSettings
from cifar10_accel.sweep.file import Goal, Sweep
from cifar10_accel.trials import Parameter, Trial

# A recipe says how to train; where, and who is told, is each user's own.
NOT_IN_A_RECIPE = {"recipe", "data_dir", "run_dir", "run_name", "num_threads", *TrackingSettings.model_fields}


def best_of(trials: Sequence[Trial], goal: Goal) -> Trial | None:
    """The finished trial with the best value; the first of equals; None if none finished."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return _by_value(finished, goal)[0] if finished else None


def table(trials: Sequence[Trial], *, metric: str, goal: Goal, title: str) -> Table:
    """All trials, the best first, for a terminal."""
    names = _parameter_names(trials)
    shown_table = Table("trial", "state", metric, "time", *names, "why", title=title, title_justify="left")
    for trial in _by_value(trials, goal):
        drawn = [short(trial.parameters[name]) if name in trial.parameters else "" for name in names]
        seconds = format_seconds(trial.seconds)
        shown_table.add_row(str(trial.number), trial.state, shown(metric, trial.value), seconds, *drawn, trial.reason)
    return shown_table


def write_results(
    trials: Sequence[Trial], folder: Path, *, metric: str, goal: Goal, constants: Mapping[str, Parameter] | None
) -> None:
    """Writes results.csv and, if a trial finished and the sweep's constants are known, best.yaml.

    Raises `SettingsError` if the folder cannot be written.
    """
    best = best_of(trials, goal)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "results.csv", as_csv(trials, metric=metric))
        if best is not None and constants is not None:
            _replace(folder / "best.yaml", as_recipe(best, folder / "best.yaml", metric=metric, constants=constants))
    except OSError as error:
        raise SettingsError(f"{folder}: results cannot be written ({error.strerror}); give another --dir") from None


def keep_file(sweep: Sweep, file: Path, folder: Path) -> None:
    """Puts a copy of the sweep's file, with its name, into its folder: all that a later report needs."""
    values = {"name": sweep.name} | read_yaml(file)
    _replace(folder / "sweep.yaml", yaml.safe_dump(values, sort_keys=False))


def as_csv(trials: Sequence[Trial], *, metric: str) -> str:
    """One line per trial, in the order of their start."""
    names = _parameter_names(trials)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["trial", "state", metric, "seconds", *names, "where", "reason"])
    for trial in trials:
        drawn = [trial.parameters.get(name, "") for name in names]
        lines.writerow(
            [trial.number, trial.state, trial.value, f"{trial.seconds:.1f}", *drawn, trial.where, trial.reason]
        )
    return text.getvalue()


def as_recipe(best: Trial, path: Path, *, metric: str, constants: Mapping[str, Parameter]) -> str:
    """The recipe that repeats a trial: that of the sweep, with the sweep's constants and the values drawn."""
    given = {**constants, **best.parameters}
    values = read_recipe(str(given["recipe"])) | given if "recipe" in given else given
    kept = {name: values[name] for name in Settings.model_fields if name in values and name not in NOT_IN_A_RECIPE}
    return (
        f"# {_command_of(best)} --recipe {path}{_threads_of(best)}\n"
        f"# The best of a sweep: trial {best.number} reached {metric} {shown(metric, best.value)}, "
        "in one run and chosen among all trials:\n"
        "# other seeds will give a little less. To train in earnest: more --epochs, and --val-size 0 for all images.\n"
        + yaml.safe_dump(kept, sort_keys=False)
    )


def _command_of(trial: Trial) -> str:
    """What starts a training on as many processes as the trial's: batch norm sees each one's share."""
    processes = RunFolder(Path(trial.where)).read_json("environment.json").get("processes", 1)
    if processes == 1:
        return "cifar10-accel train"
    return f"torchrun --standalone --nproc_per_node {processes} -m cifar10_accel.train"


def _threads_of(trial: Trial) -> str:
    """The flag without which a CPU gives other last bits, and with them a slightly other accuracy."""
    around = RunFolder(Path(trial.where)).read_json("environment.json")
    return f" --num-threads {around['threads']}" if around.get("device") == "cpu" else ""


def shown(metric: str, value: float | None) -> str:
    """A value of the metric as a person reads it: accuracies in percent, nothing if there is none."""
    if value is None:
        return ""
    return f"{value:.2%}" if metric.endswith("accuracy") else f"{value:.4g}"


def short(value: Parameter) -> str:
    """A parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)


def _by_value(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    sign = -1 if goal == "maximize" else 1
    return sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0), trial.number))


def _parameter_names(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.parameters))


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
