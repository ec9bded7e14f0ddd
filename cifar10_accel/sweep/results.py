"""Results of a sweep: a table, results.csv, and best.yaml, a recipe of the best trial."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.table import Table

from cifar10_accel.errors import SettingsError
from cifar10_accel.files import read_yaml, write_text
from cifar10_accel.formatting import format_metric, format_seconds, format_short
from cifar10_accel.recipes import read_recipe
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.runs.trial import Goal, Parameter, SweepView, Trial
from cifar10_accel.settings import Settings, TrackingSettings
from cifar10_accel.sweep.file import Sweep

# A recipe has the settings of the training, but not those of the machine and of the tracker.
NOT_IN_A_RECIPE = {"recipe", "data_dir", "run_dir", "run_name", "num_threads", *TrackingSettings.model_fields}


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


def write_results(view: SweepView, folder: Path, *, constants: Mapping[str, Parameter] | None) -> None:
    """Write results.csv and, if a trial finished and the sweep's constants are known, best.yaml.

    Raises:
        SettingsError: The folder cannot be written.
    """
    best = best_of(view.trials, view.goal)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "results.csv", as_csv(view))
        if best is not None and constants is not None:
            path = folder / "best.yaml"
            write_text(path, as_recipe(best, path, metric=view.metric, constants=constants))
    except OSError as error:
        raise SettingsError(f"{folder}: results cannot be written ({error.strerror}); give another --dir") from None


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
    """Return the recipe that repeats a trial: that of the sweep, with its constants and the trial's parameters."""
    given = {**constants, **best.parameters}
    values = read_recipe(str(given["recipe"])) | given if "recipe" in given else given
    kept = {name: values[name] for name in Settings.model_fields if name in values and name not in NOT_IN_A_RECIPE}
    return (
        f"# {_command_of(best)} --recipe {path}{_threads_of(best)}\n"
        f"# The best of a sweep: trial {best.number} reached {metric} {format_metric(metric, best.value)}, "
        "in one run and chosen among all trials:\n"
        "# expect slightly less with other seeds. For a final run: more --epochs, and --val-size 0 for all images.\n"
        + yaml.safe_dump(kept, sort_keys=False)
    )


def _command_of(trial: Trial) -> str:
    """Return the command that trains on the trial's number of processes, on which batch norm depends."""
    processes = RunFolder(Path(trial.where)).read_json("environment.json").get("processes", 1)
    if processes == 1:
        return "cifar10-accel train"
    return f"torchrun --standalone --nproc_per_node {processes} -m cifar10_accel.train"


def _threads_of(trial: Trial) -> str:
    """Return the flag that fixes the number of threads, on which the last bits depend on a CPU."""
    environment = RunFolder(Path(trial.where)).read_json("environment.json")
    return f" --num-threads {environment['threads']}" if environment.get("device") == "cpu" else ""


def _by_value(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    sign = -1 if goal == "maximize" else 1
    return sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0), trial.number))


def _parameter_names(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.parameters))
