"""Train a recipe with several seeds: statistics of its accuracy, and the paired difference to another recipe.

Each seed has a run folder of its own and is trained in a process of its own. A finished run is not trained again, an
interrupted one continues. Two recipes get the same seeds, so the runs of a pair have the same order, augmentation and
hold-out, and differ only in the recipe.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from rich.table import Table

from cifar10_accel.commands.statistics import SampleStats, verdict
from cifar10_accel.errors import SettingsError
from cifar10_accel.files import output_of
from cifar10_accel.runs.run_folder import RUNS, RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import (
    MachineShare,
    require_no_launcher,
    require_success,
    running,
    settings_to_flags,
    split_machine,
    training_command,
)

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed: its flags, its settings and its folder."""

    seed: int
    flags: dict[str, Any]
    settings: Settings
    folder: RunFolder

    def is_done(self) -> bool:
        """Return whether the folder has a finished run with these settings, on images of the same folder.

        A run whose image folder has another path is left to the training, which compares the images.
        """
        if not self.folder.is_finished() or _is_elsewhere(self.folder.settings(), self.settings):
            return False
        found, wanted = self.folder.settings(), self.settings.weight_affecting()
        for name in ("dataset", "precision"):  # the run has resolved those that the flags left open
            if wanted[name] in ("auto", None):
                del wanted[name]
        trained = found.weight_affecting()
        return found.max_steps == self.settings.max_steps and all(trained.get(name) == wanted[name] for name in wanted)


@dataclass(frozen=True, kw_only=True)
class RecipeResult:
    """The accuracy of one recipe, by seed. The names of the fields are those in repeat.json."""

    name: str
    dataset: str
    values: dict[int, float]
    spread: SampleStats


@dataclass(frozen=True, kw_only=True)
class RepeatResult:
    """The results of one or two recipes. The names of the fields are those in repeat.json."""

    metric: str
    recipe: RecipeResult
    against: RecipeResult | None
    difference: SampleStats | None  # of recipe minus `against`, seed by seed


def repeat(
    flags: Mapping[str, Any],
    *,
    num_seeds: int,
    against: str | None,
    num_workers: int | None,
    echo: Callable[[str], None],
) -> RepeatResult:
    """Train the runs that are not finished yet, and write repeat.json.

    Args:
        flags: The settings that were given. Their seed is the first one; the run folders are created in their run_dir
            (default runs/repeat).
        num_seeds: Runs of each recipe.
        against: Another recipe, which is trained with the same seeds; None for none.
        num_workers: Runs at a time; None: one per GPU, or one on a CPU.
        echo: Called with each line of progress.

    Raises:
        SettingsError: The recipes cannot be compared.
        UserError: A run failed; with the error message of the first one.
    """
    require_no_launcher("repeat")
    if Settings(**flags).has_open_length:
        raise SettingsError(
            "time_budget: it could give each seed another number of epochs; train one run with it, then give repeat "
            "the --recipe and --epochs of that run"
        )
    names, groups = [], []
    for recipe in [None, against] if against else [None]:
        name, runs = plan(dict(flags), num_seeds=num_seeds, against=recipe)
        names.append(name)
        groups.append(runs)
    if against:
        _require_comparable(groups[0][0], groups[1][0], against)
    pending = [run for pair in zip(*groups, strict=True) for run in pair if not run.is_done()]
    echo(f"{len(pending)} of {num_seeds * len(groups)} runs to train")
    train_all(pending, split_machine(num_workers, num_processes=1), echo=echo)
    runs = [run for group in groups for run in group]
    _require_equal_images(runs)
    metric = _metric(runs)
    result = _result(metric, [_collect(name, runs, metric) for name, runs in zip(names, groups, strict=True)])
    write(result, groups[0][0].folder.path.parent / "repeat.json")
    return result


def plan(flags: dict[str, Any], *, num_seeds: int, against: str | None = None) -> tuple[str, list[SeedRun]]:
    """Return a name for these flags, made from the recipe and the settings, and their runs.

    Args:
        flags: The settings that were given.
        num_seeds: Number of runs.
        against: The recipe, in place of that of the flags; a run name that was given is then followed by its name.
    """
    flags = flags | ({"recipe": against} if against else {})
    settings = Settings(**flags).resolve_recipe(on_cpu=not torch.accelerator.is_available())
    recipe = Path(settings.recipe).stem
    name = settings.run_name or f"{recipe}-{settings.dataset}-{settings.fingerprint()}"
    if settings.run_name and against:
        name += f"-{recipe}"
    base = (settings.run_dir or RUNS / "repeat") / name
    runs = []
    for seed in range(settings.seed, settings.seed + num_seeds):
        folder = base / f"seed-{seed}"
        given = flags | {"recipe": settings.recipe, "seed": seed, "run_dir": folder, "run_name": None}
        runs.append(SeedRun(seed, given, Settings(**given), RunFolder(folder)))
    return name, runs


def train_all(runs: Sequence[SeedRun], shares: Sequence[MachineShare], *, echo: Callable[[str], None]) -> None:
    """Train the runs, one at a time on each share of the machine.

    If one fails the others are stopped; they continue when the command is called again.
    """
    waiting = list(runs)
    active: dict[int, tuple[SeedRun, Popen[str]]] = {}  # by worker
    with ExitStack() as stack:
        while waiting or active:
            for worker, share in enumerate(shares):
                if waiting and worker not in active:
                    run = waiting.pop(0)
                    process = stack.enter_context(_started(run, share))
                    active[worker] = run, process
            for worker, (run, process) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[worker]
                require_success(process, log=_log(run), doing=str(run.folder.path))
                echo(f"{run.folder.path}: finished")
            time.sleep(POLL_SECONDS)


def table(result: RepeatResult) -> Table:
    """Return a table with one row per seed."""
    groups = [group for group in (result.recipe, result.against) if group is not None]
    rows = Table("seed", *(group.name for group in groups), title=result.metric, title_justify="left")
    if result.against is not None:
        rows.add_column("difference")
    for seed, value in result.recipe.values.items():
        cells = [f"{group.values[seed]:.2%}" for group in groups]
        if result.against is not None:
            cells.append(f"{100 * (value - result.against.values[seed]):+.2f} points")
        rows.add_row(str(seed), *cells)
    return rows


def summary_lines(result: RepeatResult) -> list[str]:
    """Return the statistics of each recipe, the verdict on their difference, and the images that were evaluated."""
    groups = [group for group in (result.recipe, result.against) if group is not None]
    lines = [f"{group.name}: {group.spread.summary()}" for group in groups]
    if result.difference is not None:
        lines.append(verdict(result.difference))
    images = "SYNTHETIC images, not CIFAR-10" if result.recipe.dataset == "synthetic" else result.recipe.dataset
    if result.metric.startswith("test"):
        lines.append(f"{result.metric} of {images}: for final results; to choose between settings give --val-size")
    else:
        lines.append(f"{result.metric} of {images}, on the hold-out of each run")
    return lines


def write(result: RepeatResult, path: Path) -> None:
    """Write the result as JSON: accuracies are 0..1, statistics that need more seeds are null.

    Raises:
        SettingsError: The file cannot be written.
    """
    values = json.loads(json.dumps(asdict(result)).replace("NaN", "null"))
    with output_of("run_dir", path):
        path.write_text(json.dumps(values, indent=1) + "\n")


def _started(run: SeedRun, share: MachineShare) -> Any:
    """Return the context of a training on a share of the machine."""
    given = dict(run.flags)
    if share.num_threads is not None and run.settings.num_threads is None:
        given["num_threads"] = share.num_threads
    with output_of("run_dir", run.folder.path):
        run.folder.path.parent.mkdir(parents=True, exist_ok=True)
        _log(run).touch()
    return running(
        training_command(settings_to_flags(given), num_processes=1), log=_log(run), environment=share.environment
    )


def _log(run: SeedRun) -> Path:
    return run.folder.path.with_suffix(".log")


def _metric(runs: Sequence[SeedRun]) -> str:
    """Return the metric that finished runs are compared by: of the hold-out if all have one."""
    has_val = all("val/accuracy" in run.folder.read_json("summary.json") for run in runs)
    return "val/accuracy" if has_val else "test/accuracy"


def _require_comparable(run: SeedRun, other: SeedRun, against: str) -> None:
    """Raise `SettingsError` unless the runs of two recipes differ in settings and folder, and have the same images."""
    one, another = run.settings, other.settings
    same_settings = (one.fingerprint(), one.max_steps) == (another.fingerprint(), another.max_steps)
    if same_settings or run.folder.path == other.folder.path:
        raise SettingsError(f"against: {against!r} resolves to the same settings; give another recipe")
    if one.val_size != another.val_size:
        raise SettingsError(f"val_size: {one.val_size} and {another.val_size} differ; give one --val-size for both")
    if _is_elsewhere(one, another):
        raise SettingsError(f"data_dir: {one.data_dir} and {another.data_dir} differ; give one --data-dir for both")


def _is_elsewhere(one: Settings, other: Settings) -> bool:
    """Return whether the images of two settings are read from different folders. Official sets are the same in any."""
    return one.is_own_dataset and one.dataset == other.dataset and one.data_dir.resolve() != other.data_dir.resolve()


def _collect(name: str, runs: Sequence[SeedRun], metric: str) -> RecipeResult:
    summaries = {run.seed: run.folder.read_json("summary.json") for run in runs}
    values = {seed: float(summary[metric]) for seed, summary in summaries.items()}
    datasets = {str(summary["dataset"]) for summary in summaries.values()}
    if len(datasets) > 1:
        raise SettingsError(f"dataset: the runs of {name} have {' and '.join(sorted(datasets))}; give one --dataset")
    return RecipeResult(name=name, dataset=datasets.pop(), values=values, spread=SampleStats.of(list(values.values())))


def _require_equal_images(runs: Sequence[SeedRun]) -> None:
    """Raise `SettingsError` if the images of a folder have changed between the runs."""
    if runs[0].folder.settings().dataset != "folder":
        return
    records = [(run.folder.path, run.folder.read_json("environment.json")) for run in runs]
    for name in ("classes", "images", "test_images"):  # early versions have recorded fewer of them
        known = [(path, record[name]) for path, record in records if name in record]
        for path, found in known:
            if found != known[0][1]:
                raise SettingsError(
                    f"dataset: {path} was trained on other images than {known[0][0]}; "
                    "give another --run-name to train all of them anew"
                )


def _result(metric: str, recipes: Sequence[RecipeResult]) -> RepeatResult:
    recipe, against = recipes[0], recipes[1] if len(recipes) > 1 else None
    if against is None:
        return RepeatResult(metric=metric, recipe=recipe, against=None, difference=None)
    if recipe.dataset != against.dataset:
        raise SettingsError(f"dataset: {recipe.dataset} and {against.dataset} cannot be compared; give one --dataset")
    differences = [value - against.values[seed] for seed, value in recipe.values.items()]
    return RepeatResult(metric=metric, recipe=recipe, against=against, difference=SampleStats.of(differences))
