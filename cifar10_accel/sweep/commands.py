"""`cifar10-accel sweep`: search settings on this machine, with the same file that W&B takes."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import click

from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.flags import exits_with_one_line
from cifar10_accel.sweep.file import Goal
from cifar10_accel.trials import Parameter, Trial

SWEEPS = Path("runs/sweeps")
POSITIVE = click.IntRange(min=1)
STORAGE = click.option(
    "--storage", metavar="URL", help="database that the workers of many machines share; default: a file in the folder"
)


@click.group()
def sweep() -> None:
    """Search settings with a W&B sweep file, without W&B."""


@sweep.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--workers", type=POSITIVE, help="trials at a time  [default: one for each GPU; one on a CPU]")
@click.option("--trials", type=POSITIVE, help="trials in all, earlier ones too  [default: run_cap, or the whole grid]")
@STORAGE
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="default: runs/sweeps/<name of the sweep>")
@click.option("--num-processes", type=POSITIVE, default=1, show_default=True, help="processes for each trial")
@exits_with_one_line
def run(
    file: Path, workers: int | None, trials: int | None, storage: str | None, folder: Path | None, num_processes: int
) -> None:
    """Run the sweep in FILE; the same command again continues it, and adds workers while it runs."""
    from cifar10_accel.sweep.file import num_trials_of, read_sweep

    plan = read_sweep(file)
    num_trials = num_trials_of(plan, trials)
    _require_optuna()
    from cifar10_accel.sweep import runner
    from cifar10_accel.sweep.results import keep_file
    from cifar10_accel.sweep.search import Search
    from cifar10_accel.sweep.slots import slots
    from cifar10_accel.sweep.storage import storage_outage_explained

    folder = folder or SWEEPS / plan.name
    places = slots(workers, num_processes=num_processes)
    with storage_outage_explained():
        search = Search(plan, folder, storage=storage)
        keep_file(plan, file, folder)
        click.echo(f"{plan.name}: {num_trials} trials, {plan.method}, {len(places)} at a time, in {folder}")
        try:
            runner.run(plan, search, places, num_trials=num_trials, num_processes=num_processes, say=click.echo)
        finally:
            found = search.trials()
            _leave(found, folder, metric=plan.metric, goal=plan.goal, constants=plan.constants, title=plan.name)
    if found and all(trial.state == "failed" for trial in found):
        raise UserError(f"all {len(found)} trials failed, the last: {found[-1].reason}; see {found[-1].where}")


@sweep.command()
@click.argument("folder", metavar="DIR|ENTITY/PROJECT/ID", type=click.Path(path_type=Path))
@STORAGE
@exits_with_one_line
def report(folder: Path, storage: str | None) -> None:
    """Show the trials of a sweep, a local one's folder or W&B's, and write results.csv, best.yaml and sweep.html."""
    if not folder.exists() and len(folder.parts) == 3 and not folder.is_absolute():
        from cifar10_accel.sweep.wandb_pull import pull

        trials, metric, goal = pull(str(folder))
        _leave(trials, SWEEPS / folder.name, metric=metric, goal=goal, constants=None, title=str(folder))
        return
    from cifar10_accel.sweep.file import read_sweep

    plan = read_sweep(folder / "sweep.yaml")
    _require_optuna()
    from cifar10_accel.sweep.search import read_trials
    from cifar10_accel.sweep.storage import storage_outage_explained

    with storage_outage_explained():
        trials = read_trials(plan, folder, storage=storage)
    _leave(trials, folder, metric=plan.metric, goal=plan.goal, constants=plan.constants, title=plan.name)


def _leave(
    trials: Sequence[Trial],
    folder: Path,
    *,
    metric: str,
    goal: Goal,
    constants: dict[str, Parameter] | None,
    title: str,
) -> None:
    """Prints the table and writes the results."""
    from rich.console import Console

    from cifar10_accel.sweep import results

    if not trials:
        click.echo("no trials yet")
        return
    Console(highlight=False, soft_wrap=True).print(results.table(trials, metric=metric, goal=goal, title=title))
    results.write_results(trials, folder, metric=metric, goal=goal, constants=constants)
    _write_page(trials, folder / "sweep.html", metric=metric, goal=goal, title=title)
    names = [name for name in ("results.csv", "best.yaml", "sweep.html") if (folder / name).exists()]
    click.echo(f"{', '.join(names)}: in {folder}")


def _write_page(trials: Sequence[Trial], path: Path, *, metric: str, goal: Goal, title: str) -> None:
    from cifar10_accel.pages.sweep import write_sweep_page

    shares, method = dict[str, float](), ""
    if importlib.util.find_spec("optuna") is not None:  # a sweep of W&B's can be looked at without it
        from cifar10_accel.sweep.importance import METHOD as method
        from cifar10_accel.sweep.importance import importance_of

        shares = importance_of(trials, goal)
    try:
        write_sweep_page(
            trials, title=title, metric=metric, goal=goal, path=path, importance=shares, importance_note=method
        )
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror}); give another --dir") from None


def _require_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise SettingsError("sweep: Optuna is not installed; pip install 'cifar10-accel[sweep]'")
