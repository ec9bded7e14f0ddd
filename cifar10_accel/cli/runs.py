"""Commands that read a finished run: evaluate, predict, export, report, compare, robustness, demo."""

import json
from pathlib import Path
from typing import Any

import click

from cifar10_accel.cli.flags import WIDE_HELP, handle_user_errors, is_main_rank, require_installed
from cifar10_accel.errors import InputError
from cifar10_accel.formatting import dataset_title
from cifar10_accel.settings import Settings


@click.command()
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option("--tta", metavar="none|flip|multicrop", help="test-time augmentation, printed beside the plain number")
@click.option("--data-dir", help="where the data set is; default: as in the run")
@click.option("--eval-batch-size", metavar="INT", help="images per batch; default: as in the run")
@click.option("--precision", metavar="no|fp16|bf16", help="default: as in the run")
@click.option("--json", "as_json", is_flag=True, help="print the metrics as JSON")
@handle_user_errors
def evaluate(run_or_checkpoint: Path, as_json: bool, **given: str | None) -> None:
    """Evaluate a run folder, or one of its checkpoints, on the whole test set."""
    overrides = {name: value for name, value in given.items() if value is not None}
    Settings(**overrides)  # an invalid value is reported before torch is imported
    from rich.console import Console

    from cifar10_accel.commands import evaluate as command

    evaluation, settings = command.evaluate(run_or_checkpoint, overrides=overrides)
    if not is_main_rank():
        return
    if as_json:
        click.echo(json.dumps(evaluation.metrics(), indent=1))
        return
    console = Console(highlight=False)
    console.print(evaluation.table(f"{run_or_checkpoint}, {dataset_title(settings.dataset)} test set"))
    console.print(evaluation.headline(settings.dataset))


@click.command(context_settings=WIDE_HELP)
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="classes shown for each image")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--skip-bad", is_flag=True, help="exit with 0 although some files could not be read")
@click.option(
    "--grad-cam",
    "overlays",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="folder for pictures of each image beside its Grad-CAM heat map",
)
@handle_user_errors
def predict(
    run_or_checkpoint: Path, images: tuple[Path, ...], top: int, form: str, skip_bad: bool, overlays: Path | None
) -> None:
    """Predict the class of image files with a trained run: files of any size and kind, folders of them, patterns."""
    from rich.console import Console

    from cifar10_accel.commands import predict as command

    predictions = command.predict(run_or_checkpoint, images, top=top, overlays=overlays)
    if form == "table":
        Console(highlight=False).print(command.as_table(predictions))
    else:
        click.echo(command.as_csv(predictions) if form == "csv" else command.as_json(predictions))
    faults = [prediction.fault for prediction in predictions if prediction.fault]
    for fault in faults:
        click.secho(f"error: {fault}", fg="red", err=True)
    if faults and not skip_bad:
        raise SystemExit(InputError.exit_code)


@click.command(context_settings=WIDE_HELP)
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["safetensors", "onnx", "torch-export", "hub"]), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file to write; for hub a folder")
@handle_user_errors
def export(run_or_checkpoint: Path, form: Any, out: Path) -> None:
    """Write a trained model for other programs; the file is kept only if its outputs match on the test images."""
    from cifar10_accel.commands import export as command

    parity = command.export(run_or_checkpoint, out, form=form)
    click.echo(f"{out}: {parity}")
    if form == "hub":
        click.echo(f"to publish it: hf upload USER/NAME {out}")


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--wandb", metavar="ENTITY/PROJECT", help="create a report of this project in W&B instead")
@click.option("--sweep", metavar="ID", help="with --wandb: of this sweep only")
@click.option("--grad-cam", is_flag=True, help="show Grad-CAM heat maps of the most confident mistakes")
@click.option("--data-dir", type=click.Path(path_type=Path), help="where the data set is; default: as in the run")
@handle_user_errors
def report(run: Path | None, wandb: str | None, sweep: str | None, grad_cam: bool, data_dir: Path | None) -> None:
    """Write a run's report.html and print its path; or create a report in W&B."""
    if (run is None) == (wandb is None) or (sweep and not wandb) or (grad_cam and wandb):
        raise click.UsageError("give either RUN or --wandb ENTITY/PROJECT, and --sweep only with --wandb")
    if wandb is not None:
        from cifar10_accel.commands import wandb_report

        click.echo(wandb_report.create(wandb, sweep=sweep))
    elif run is not None:
        from cifar10_accel.commands import report as command

        click.echo(command.report(run, grad_cam=grad_cam, data_dir=data_dir))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("compare.html"), show_default=True, help="page to write"
)
@handle_user_errors
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """Compare finished runs: settings, curves, seeds, and image by image the first two."""
    if len(runs) < 2:
        raise click.UsageError("give two run folders or more")
    from rich.console import Console

    from cifar10_accel.commands import compare as command

    comparison = command.compare(runs, out=out)
    console = Console(highlight=False)
    for table in command.tables(comparison):
        console.print(table)
    for line in command.summary_lines(comparison):
        click.echo(line)
    click.echo(f"page: {out}")


@click.command()
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(min=1), help="number of test images, evenly spaced  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of the noise")
@click.option("--data-dir", help="where the data set is; default: as in the run")
@click.option("--eval-batch-size", metavar="INT", help="images per batch; default: as in the run")
@handle_user_errors
def robustness(run_or_checkpoint: Path, images: int | None, seed: int, **given: str | None) -> None:
    """Evaluate a trained run on corrupted test images: six kinds, five severities; results go into its report too."""
    overrides = {name: value for name, value in given.items() if value is not None}
    Settings(**overrides)  # an invalid value is reported before torch is imported
    require_installed("torchvision", command="robustness", extra="robustness")
    from rich.console import Console

    from cifar10_accel.commands import robustness as command
    from cifar10_accel.commands.report import report

    result = command.robustness(run_or_checkpoint, num_images=images, seed=seed, overrides=overrides)
    if not is_main_rank():
        return
    for table in command.tables(result):
        Console(highlight=False).print(table)
    click.echo(f"report: {report(command.folder_of(run_or_checkpoint))}; the numbers are in robustness.json")


@click.command(context_settings=WIDE_HELP)
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="training images to search for the nearest ones, evenly spaced",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="where the data set is; default: as in the run")
@click.option("--port", type=click.IntRange(1, 65535), help="port of the page  [default: the first free one from 7860]")
@handle_user_errors
def demo(run_or_checkpoint: Path, images: int, data_dir: Path | None, port: int | None) -> None:
    """Open a local web page that shows probabilities, Grad-CAM and nearest training images of a dropped image."""
    from cifar10_accel.commands import demo as command

    command.demo(run_or_checkpoint, num_images=images, data_dir=data_dir, port=port)
