"""The same training with several seeds: its mean and spread, and the paired difference to another recipe.

Each seed is a run folder of its own, trained in a process of its own; one that is finished is not
trained again, one that was cut off continues. With another recipe both get the same seeds, so order,
augmentation and hold-out of a pair have the same randomness, and what differs is the recipe.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from rich.table import Table

from cifar10_accel.children import refuse_launcher, require_success
from cifar10_accel.errors import SettingsError
from cifar10_accel.launch import without_auto
from cifar10_accel.processes import flags_of, running, training_command
from cifar10_accel.run_folder import RUNS, RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.spread import Spread, verdict

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Seed:
    """One run to be made: its flags, its settings and its folder."""

    seed: int
    flags: dict[str, Any]
    settings: Settings
    folder: RunFolder

    def is_done(self) -> bool:
        """Whether exactly this run is finished in its folder."""
        if not self.folder.is_finished():
            return False
        found, wanted = self.folder.settings(), self.settings.math()
        for filled_in in ("dataset", "precision"):  # where the flags left them open, the run says what it was
            if wanted[filled_in] in ("auto", None):
                del wanted[filled_in]
        made = found.math()
        return found.max_steps == self.settings.max_steps and all(made[name] == wanted[name] for name in wanted)


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """One recipe's runs, by seed."""

    name: str
    dataset: str
    values: dict[int, float]
    spread: Spread


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the seeds came to; `difference` is of recipe minus `against`, seed by seed."""

    metric: str
    recipe: Repeated
    against: Repeated | None
    difference: Spread | None


def repeat(
    flags: Mapping[str, Any], *, num_seeds: int, against: str | None, num_workers: int | None,
    say: Callable[[str], None],
) -> Outcome:  # fmt: skip
    """Trains what is not trained yet, `num_workers` runs at a time (None: one per GPU), and writes repeat.json.

    flags: the settings that were given; the first seed is theirs, the folders lie under their run_dir
    (default runs/repeat). Raises a `UserError` with the words of the first run that fails.
    """
    refuse_launcher("repeat")
    names, groups = [], []
    for recipe in [{}, {"recipe": against}] if against else [{}]:
        name, seeds = plan(dict(flags) | recipe, num_seeds=num_seeds)
        names.append(name)
        groups.append(seeds)
    metric = _metric([group[0].settings for group in groups])
    if len(set(names)) < len(names):
        raise SettingsError(f"against: {against!r} comes to the same settings; give another recipe")
    pending = [run for pair in zip(*groups, strict=True) for run in pair if not run.is_done()]
    say(f"{len(pending)} of {num_seeds * len(groups)} runs to train")
    train_all(pending, num_workers=num_workers or max(1, torch.accelerator.device_count()), say=say)
    results = [_collect(name, seeds, metric) for name, seeds in zip(names, groups, strict=True)]
    outcome = _outcome(metric, results)
    write(outcome, groups[0][0].folder.path.parent / "repeat.json")
    return outcome


def plan(flags: dict[str, Any], *, num_seeds: int) -> tuple[str, list[Seed]]:
    """The name that recipe and settings give the group, and its runs."""
    settings = without_auto(Settings(**flags), on_cpu=not torch.accelerator.is_available())
    recipe = Path(settings.recipe).stem
    name = settings.run_name or f"{recipe}-{settings.dataset}-{settings.fingerprint()}"
    base = (settings.run_dir or RUNS / "repeat") / name
    runs = []
    for seed in range(settings.seed, settings.seed + num_seeds):
        folder = base / f"seed-{seed}"
        given = flags | {"recipe": settings.recipe, "seed": seed, "run_dir": folder, "run_name": None}
        runs.append(Seed(seed, given, Settings(**given), RunFolder(folder)))
    return name, runs


def train_all(runs: Sequence[Seed], *, num_workers: int, say: Callable[[str], None]) -> None:
    """Trains the runs, so many at a time; the first that fails ends the others, which continue next time."""
    waiting = list(runs)
    active: dict[int, tuple[Seed, Popen[str]]] = {}  # by worker
    with ExitStack() as stack:
        while waiting or active:
            for worker in range(num_workers):
                if waiting and worker not in active:
                    run = waiting.pop(0)
                    process = stack.enter_context(_started(run, worker, num_workers))
                    active[worker] = run, process
            for worker, (run, process) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[worker]
                require_success(process, log=_log(run), doing=str(run.folder.path))
                say(f"{run.folder.path}: finished")
            time.sleep(POLL_SECONDS)


def share_of_machine(worker: int, num_workers: int) -> tuple[dict[str, str], int | None]:
    """What one of several workers gets: variables that show it one GPU, or its CPU threads (None: as the run says)."""
    num_gpus = torch.accelerator.device_count()
    if num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        number = worker % num_gpus
        return {
            "CUDA_VISIBLE_DEVICES": visible[number] if len(visible) >= num_gpus and visible[0] else str(number)
        }, None
    return {}, max(1, (os.cpu_count() or 1) // num_workers) if num_workers > 1 else None


def table(outcome: Outcome) -> Table:
    """One row per seed."""
    groups = [group for group in (outcome.recipe, outcome.against) if group is not None]
    result = Table("seed", *(group.name for group in groups), title=outcome.metric, title_justify="left")
    if outcome.against is not None:
        result.add_column("difference")
    for seed, value in outcome.recipe.values.items():
        cells = [f"{group.values[seed]:.2%}" for group in groups]
        if outcome.against is not None:
            cells.append(f"{100 * (value - outcome.against.values[seed]):+.2f} points")
        result.add_row(str(seed), *cells)
    return result


def in_words(outcome: Outcome) -> str:
    """Mean and spread of each group, the verdict on their difference, and which images were counted."""
    groups = [group for group in (outcome.recipe, outcome.against) if group is not None]
    lines = [f"{group.name}: {group.spread.in_words()}" for group in groups]
    if outcome.difference is not None:
        lines.append(verdict(outcome.difference))
    images = "SYNTHETIC images, not CIFAR-10" if outcome.recipe.dataset == "synthetic" else outcome.recipe.dataset
    if outcome.metric.startswith("test"):
        lines.append(f"{outcome.metric} of {images}: for the record; to choose between settings give --val-size")
    else:
        lines.append(f"{outcome.metric} of {images}, on each seed's own hold-out")
    return "\n".join(lines)


def write(outcome: Outcome, path: Path) -> None:
    """The whole outcome as JSON; accuracies are 0..1, a number that needs more seeds is null."""
    values = json.loads(json.dumps(asdict(outcome)).replace("NaN", "null"))
    path.write_text(json.dumps(values, indent=1) + "\n")


def _started(run: Seed, worker: int, num_workers: int) -> Any:
    """The context of a training on this worker's share of the machine."""
    environment, num_threads = share_of_machine(worker, num_workers)
    given = dict(run.flags)
    if num_threads is not None and run.settings.num_threads is None:
        given["num_threads"] = num_threads
    run.folder.path.parent.mkdir(parents=True, exist_ok=True)
    return running(training_command(flags_of(given), num_processes=1), log=_log(run), environment=environment)


def _log(run: Seed) -> Path:
    return run.folder.path.with_suffix(".log")


def _metric(settings: Sequence[Settings]) -> str:
    """What every run is judged by: the hold-out if there is one."""
    sizes = {each.val_size for each in settings}
    if len(sizes) > 1:
        raise SettingsError(f"val_size: {' and '.join(map(str, sorted(sizes)))} differ; give one --val-size for both")
    return "val/accuracy" if sizes != {0} else "test/accuracy"


def _collect(name: str, runs: Sequence[Seed], metric: str) -> Repeated:
    summaries = {run.seed: run.folder.read_json("summary.json") for run in runs}
    values = {seed: float(summary[metric]) for seed, summary in summaries.items()}
    datasets = {str(summary["dataset"]) for summary in summaries.values()}
    if len(datasets) > 1:
        raise SettingsError(f"dataset: the runs of {name} have {' and '.join(sorted(datasets))}; give one --dataset")
    return Repeated(name=name, dataset=datasets.pop(), values=values, spread=Spread.of(list(values.values())))


def _outcome(metric: str, results: Sequence[Repeated]) -> Outcome:
    recipe, against = results[0], results[1] if len(results) > 1 else None
    if against is None:
        return Outcome(metric=metric, recipe=recipe, against=None, difference=None)
    if recipe.dataset != against.dataset:
        raise SettingsError(f"dataset: {recipe.dataset} and {against.dataset} cannot be compared; give one --dataset")
    differences = [value - against.values[seed] for seed, value in recipe.values.items()]
    return Outcome(metric=metric, recipe=recipe, against=against, difference=Spread.of(differences))
