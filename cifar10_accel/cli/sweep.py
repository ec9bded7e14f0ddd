"""Commands for sweeps: sweep run, sweep report. The sweep file is the one that W&B takes."""

import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from cifar10_accel.cli.flags import handle_user_errors, require_installed
from cifar10_accel.cli.parameters import OUT, PATH
from cifar10_accel.errors import InputError, UserError
from cifar10_accel.files import output_of
from cifar10_accel.runs.trial import Parameter, Rerun, SweepView

logger = logging.getLogger(__name__)

SWEEPS = Path("runs/sweeps")
POSITIVE = click.IntRange(min=1)


def _warn_of_shown_password(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    is_typed = context.get_parameter_source(str(parameter.name)) == ParameterSource.COMMANDLINE
    if value and is_typed and re.search(r"://[^/@]*:[^/@]*@", value):
        logger.warning("storage: `ps` shows the password; give the URL in OPTUNA_STORAGE, or the password in ~/.pgpass")
    return value


STORAGE = click.option(
    "--storage",
    metavar="URL",
    envvar="OPTUNA_STORAGE",
    show_envvar=True,
    callback=_warn_of_shown_password,
    help="database that the workers of many machines share; default: a file in the folder",
)


sweep = click.Group("sweep", help="Search settings with a W&B sweep file. W&B is not needed for it.")


@sweep.command(help="Run the sweep in FILE. The same command again continues it, and adds workers while it runs.")
@click.argument("file", type=PATH)
@click.option("--workers", type=POSITIVE, help="trials at a time  [default: one for each GPU; one on a CPU]")
@click.option("--trials", type=POSITIVE, help="trials in all, earlier ones too  [default: run_cap, or the whole grid]")
@STORAGE
@click.option("--dir", "folder", type=OUT, help="default: runs/sweeps/<name of the sweep>")
@click.option("--num-processes", type=POSITIVE, default=1, show_default=True, help="processes for each trial")
@handle_user_errors
def run(
    file: Path, workers: int | None, trials: int | None, storage: str | None, folder: Path | None, num_processes: int
) -> None:
    from cifar10_accel.sweep.file import num_trials_of, read_sweep

    plan = read_sweep(file)
    num_trials = num_trials_of(plan, trials)
    require_installed("optuna", command="sweep", extra="sweep")
    from cifar10_accel.subprocesses import require_no_launcher, split_machine
    from cifar10_accel.sweep import runner
    from cifar10_accel.sweep.results import copy_sweep_file
    from cifar10_accel.sweep.search import Search
    from cifar10_accel.sweep.storage import storage_outage_explained

    require_no_launcher("sweep run")
    folder = folder or SWEEPS / plan.name
    shares = split_machine(workers, num_processes=num_processes)
    with storage_outage_explained():
        with output_of("dir", folder):
            search = Search(plan, folder, storage=storage)
            copy_sweep_file(plan, file, folder)
        click.echo(f"{plan.name}: {num_trials} trials, {plan.method}, {len(shares)} at a time, in {folder}")
        try:
            runner.run(plan, search, shares, num_trials=num_trials, num_processes=num_processes, print_line=click.echo)
        except UserError:  # it has a reason and an exit code, which results that cannot be written must not replace
            with _errors_as_warnings(), storage_outage_explained():
                _write_results(plan.view(search.trials()), folder, constants=plan.constants)
            raise
        found = search.trials()
        _write_results(plan.view(found), folder, constants=plan.constants)
    if found and all(trial.state == "failed" for trial in found):
        raise UserError(
            f"all {len(found)} trials failed, the last: {found[-1].reason}; see {found[-1].where}, and give another "
            "--dir to try again"
        )


@sweep.command(help="Show the trials of a sweep, local (DIR) or of W&B. Writes results.csv, best.yaml and sweep.html.")
@click.argument("folder", metavar="DIR|ENTITY/PROJECT/ID", type=PATH)
@STORAGE
@handle_user_errors
def report(folder: Path, storage: str | None) -> None:
    is_local = folder.parent == SWEEPS or folder.parent.exists() or folder.is_absolute()
    if not is_local and len(folder.parts) == 3:
        from cifar10_accel.sweep.wandb_pull import pull

        _write_results(pull(str(folder)), SWEEPS / folder.name, constants=None)
        return
    from cifar10_accel.sweep.file import read_sweep

    if not (folder / "sweep.yaml").exists():
        raise InputError(f"{folder}: no sweep.yaml there; give the folder of a sweep, or ENTITY/PROJECT/ID of W&B")
    plan = read_sweep(folder / "sweep.yaml")
    require_installed("optuna", command="sweep", extra="sweep")
    from cifar10_accel.sweep.search import read_trials
    from cifar10_accel.sweep.storage import storage_outage_explained

    with storage_outage_explained():
        trials = read_trials(plan, folder, storage=storage)
    _write_results(plan.view(trials), folder, constants=plan.constants)


@contextmanager
def _errors_as_warnings() -> Iterator[None]:
    """Context whose errors become warnings."""
    try:
        yield
    except UserError as error:
        logger.warning("%s", error)


def _write_results(view: SweepView, folder: Path, *, constants: Mapping[str, Parameter] | None) -> None:
    """Print the table and write the files; without the sweep's constants no best.yaml."""
    from cifar10_accel.sweep import results
    from cifar10_accel.tracking.console import LiteralConsole

    if not view.trials:
        click.echo("no trials yet")
        return
    LiteralConsole(soft_wrap=True).print(results.table(view))
    rerun = results.write_results(view, folder, constants=constants)
    _write_page(view, folder / "sweep.html", rerun)
    names = [name for name in ("results.csv", "best.yaml", "sweep.html") if (folder / name).exists()]
    click.echo(f"{', '.join(names)}: in {folder}")


def _write_page(view: SweepView, path: Path, rerun: Rerun | None) -> None:
    from cifar10_accel.report.sweep_page import write_sweep_page

    shares, method = dict[str, float](), ""
    if importlib.util.find_spec("optuna") is not None:  # the page of a W&B sweep does not need it
        from cifar10_accel.sweep.importance import METHOD as method
        from cifar10_accel.sweep.importance import importance_of

        shares = importance_of(view.trials, view.goal)
    with output_of(None, path):
        write_sweep_page(path, view, importance=shares, importance_note=method, rerun=rerun)
