"""Commands that read a finished run: evaluate, predict, export, report, compare, robustness, demo."""

import json
from pathlib import Path
from typing import Any

import click

from cifar10_accel.cli.flags import (
    announce_loading,
    handle_user_errors,
    is_main_rank,
    require_installed,
    setting_option,
)
from cifar10_accel.cli.parameters import OUT, PATH
from cifar10_accel.errors import InputError
from cifar10_accel.formatting import dataset_title
from cifar10_accel.settings import Settings


@click.command("runs", help="List all runs below a folder, with their accuracies. Those of sweeps and repetitions too.")
@click.argument("folder", metavar="[DIR]", default="runs", type=PATH)
@click.option(
    "--sort",
    "order",
    multiple=True,
    metavar="[-]FIELD",
    help="field or setting to sort by, such as accuracy; - in front: descending  [default: -date]",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="recipe=cpu, 'accuracy>0.9', name=*seed*; = != < <= > >=, a field or setting on the left; all must hold",
)
@click.option("--json", "form", flag_value="json", help="print the runs as JSON")
@click.option("--csv", "form", flag_value="csv", help="print the runs as CSV")
@click.option(
    "--html", is_flag=True, help="write index.html into DIR too: all runs, their curves, links to the reports"
)
@handle_user_errors
def list_runs(folder: Path, order: tuple[str, ...], filters: tuple[str, ...], form: str | None, html: bool) -> None:
    from cifar10_accel.commands.runs import output, query
    from cifar10_accel.runs.listing import list_runs

    listing = list_runs(folder)
    runs = query.select(listing.runs, filters=filters, order=order)
    if form is not None:
        click.echo(output.as_json(runs) if form == "json" else output.as_csv(runs), nl=form == "json")
    elif runs:
        output.print_table(runs, folder=folder)
    else:
        click.echo(f"{folder}: {f'none of {len(listing.runs):,} runs fits' if listing.runs else 'no runs there yet'}")
    if line := output.unreadable_line(listing):
        click.echo(line, err=True)
    if html:
        click.echo(f"page: {output.write_index(listing, runs)}", err=form is not None)


@click.command(
    help="Evaluate a run on the whole test set. RUN_OR_CHECKPOINT is a run folder or one of its checkpoints; several "
    "are evaluated one by one and as an ensemble, the mean of their probabilities."
)
@click.argument("runs_or_checkpoints", metavar="RUN_OR_CHECKPOINT...", nargs=-1, required=True, type=PATH)
@setting_option("tta", "test-time augmentation, printed beside the plain number")
@setting_option("data_dir", "where the data set is; default: CIFAR10_ACCEL_DATA_DIR, or as in the run")
@setting_option("eval_batch_size", "images per batch; default: as in the run")
@setting_option("precision", "mixed precision; default: as in the run")
@click.option("--json", "as_json", is_flag=True, help="print the metrics as JSON")
@handle_user_errors
def evaluate(runs_or_checkpoints: tuple[Path, ...], as_json: bool, **given: str | None) -> None:
    overrides = {name: value for name, value in given.items() if value is not None}
    Settings(**overrides)  # an invalid value is reported before torch is imported
    announce_loading()
    from cifar10_accel.tracking.console import LiteralConsole

    evaluation: Any
    if len(runs_or_checkpoints) > 1:
        from cifar10_accel.commands.ensemble import evaluate_ensemble

        evaluation = evaluate_ensemble(runs_or_checkpoints, overrides=overrides)
        table, headline = evaluation.table(), evaluation.headline()
    else:
        from cifar10_accel.commands import evaluate as command

        source = runs_or_checkpoints[0]
        evaluation, settings = command.evaluate(source, overrides=overrides)
        table = evaluation.table(f"{source}, {dataset_title(settings.dataset)} test set")
        headline = evaluation.headline(settings.dataset)
    if not is_main_rank():
        return
    if as_json:
        click.echo(json.dumps(evaluation.metrics(), indent=1))
        return
    console = LiteralConsole()
    console.print(table)
    console.print(headline)


@click.command(help="Predict the class of images. They are files of any size and kind, folders of them, or patterns.")
@click.argument("run_or_checkpoint", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="classes shown for each image")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--skip-bad", is_flag=True, help="exit with 0 although some files could not be read")
@click.option(
    "--grad-cam",
    "overlays",
    type=OUT,
    metavar="FOLDER",
    help="folder for pictures of each image beside its Grad-CAM heat map",
)
@handle_user_errors
def predict(
    run_or_checkpoint: Path, images: tuple[Path, ...], top: int, form: str, skip_bad: bool, overlays: Path | None
) -> None:
    announce_loading()
    from cifar10_accel.commands import predict as command
    from cifar10_accel.tracking.console import LiteralConsole

    predictions = command.predict(run_or_checkpoint, images, top=top, overlays=overlays)
    if form == "table":
        LiteralConsole().print(command.as_table(predictions))
    else:
        click.echo(command.as_csv(predictions) if form == "csv" else command.as_json(predictions))
    faults = [prediction.fault for prediction in predictions if prediction.fault]
    for fault in faults:
        click.secho(f"error: {fault}", fg="red", err=True)
    if faults and not skip_bad:
        raise SystemExit(InputError.exit_code)


@click.command(
    help="Write the model for other programs. The file is kept only if its outputs match on the test images."
)
@click.argument("run_or_checkpoint", type=PATH)
@click.option("--format", "form", type=click.Choice(["safetensors", "onnx", "torch-export", "hub"]), required=True)
@click.option("--out", type=OUT, required=True, help="file to write; for hub a folder")
@click.option("--data-dir", type=PATH, help="where the data set is; default: CIFAR10_ACCEL_DATA_DIR, or as in the run")
@handle_user_errors
def export(run_or_checkpoint: Path, form: Any, out: Path, data_dir: Path | None) -> None:
    announce_loading()
    from cifar10_accel.commands.export import command

    parity = command.export(run_or_checkpoint, out, form=form, data_dir=data_dir)
    click.echo(f"{out}: {parity}")
    if parity.why_not_test:
        click.echo(f"parity on the test images was not checked: {parity.why_not_test}")
    if form == "hub":
        click.echo(f"to publish it: hf upload USER/NAME {out}")


@click.command(help="Write a run's page and print its path. Or create a report in W&B.")
@click.argument("run", required=False, type=PATH)
@click.option("--wandb", metavar="ENTITY/PROJECT", help="create a report of this project in W&B instead")
@click.option("--sweep", metavar="ID", help="with --wandb: of this sweep only")
@click.option("--grad-cam", is_flag=True, help="show Grad-CAM heat maps of the most confident mistakes")
@click.option("--data-dir", type=PATH, help="where the data set is; default: CIFAR10_ACCEL_DATA_DIR, or as in the run")
@handle_user_errors
def report(run: Path | None, wandb: str | None, sweep: str | None, grad_cam: bool, data_dir: Path | None) -> None:
    if (run is None) == (wandb is None) or (sweep and not wandb) or (grad_cam and wandb):
        raise click.UsageError("give either RUN or --wandb ENTITY/PROJECT, and --sweep only with --wandb")
    if wandb is not None:
        from cifar10_accel.commands import wandb_report

        click.echo(wandb_report.create(wandb, sweep=sweep))
    elif run is not None:
        announce_loading()
        from cifar10_accel.commands import report as command

        click.echo(command.report(run, grad_cam=grad_cam, data_dir=data_dir))


@click.command(help="Compare finished runs. Settings, curves and seeds of all; image by image the first two.")
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--out", type=OUT, default=Path("compare.html"), show_default=True, help="page to write")
@click.option("--data-dir", type=PATH, help="where the data set is; default: CIFAR10_ACCEL_DATA_DIR, or as in a run")
@handle_user_errors
def compare(runs: tuple[Path, ...], out: Path, data_dir: Path | None) -> None:
    if len(runs) < 2:
        raise click.UsageError("give two run folders or more")
    announce_loading()
    from cifar10_accel.commands import compare as command
    from cifar10_accel.tracking.console import LiteralConsole

    comparison = command.compare(runs, out=out, data_dir=data_dir)
    console = LiteralConsole()
    for table in command.tables(comparison):
        console.print(table)
    for line in [*command.summary_lines(comparison), *comparison.missing]:
        click.echo(line)
    click.echo(f"page: {out}")


@click.command(
    help="Evaluate on corrupted test images. Six kinds, five severities; the results go into the run's report too."
)
@click.argument("run_or_checkpoint", type=PATH)
@click.option("--images", type=click.IntRange(min=1), help="number of test images, evenly spaced  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of the noise")
@setting_option("data_dir", "where the data set is; default: CIFAR10_ACCEL_DATA_DIR, or as in the run")
@setting_option("eval_batch_size", "images per batch; default: as in the run")
@setting_option("precision", "mixed precision; default: as in the run")
@handle_user_errors
def robustness(run_or_checkpoint: Path, images: int | None, seed: int, **given: str | None) -> None:
    overrides = {name: value for name, value in given.items() if value is not None}
    Settings(**overrides)  # an invalid value is reported before torch is imported
    require_installed("torchvision", command="robustness", extra="robustness")
    announce_loading()
    from cifar10_accel.commands import robustness as command
    from cifar10_accel.commands.report import report
    from cifar10_accel.tracking.console import LiteralConsole

    result = command.robustness(run_or_checkpoint, num_images=images, seed=seed, overrides=overrides)
    if not is_main_rank():
        return
    for table in command.tables(result):
        LiteralConsole().print(table)
    data_dir = Path(overrides["data_dir"]) if "data_dir" in overrides else None
    page = report(command.folder_of(run_or_checkpoint), data_dir=data_dir)
    click.echo(f"report: {page}; the numbers are in robustness.json")


@click.command(
    help="Try single images on a local web page. It shows probabilities, Grad-CAM and the nearest training images."
)
@click.argument("run_or_checkpoint", type=PATH)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="training images to search for the nearest ones, evenly spaced",
)
@click.option("--data-dir", type=PATH, help="where the data set is; default: CIFAR10_ACCEL_DATA_DIR, or as in the run")
@click.option("--port", type=click.IntRange(1, 65535), help="port of the page  [default: the first free one from 7860]")
@handle_user_errors
def demo(run_or_checkpoint: Path, images: int, data_dir: Path | None, port: int | None) -> None:
    announce_loading()
    from cifar10_accel.commands import demo as command

    command.demo(run_or_checkpoint, num_images=images, data_dir=data_dir, port=port)
