"""The command `cifar10-accel`: a group of verbs. Bodies import what they need, so that help is instant."""

import json
from pathlib import Path
from typing import Any

import click

from cifar10_accel import __version__
from cifar10_accel.cli.checking import doctor, repeat, verify_parallel, verify_resume
from cifar10_accel.cli.data import data
from cifar10_accel.errors import InputError
from cifar10_accel.flags import WIDE, exits_with_one_line, is_main_rank, settings_flags
from cifar10_accel.recipes import recipe_names, recipe_path
from cifar10_accel.settings import Settings
from cifar10_accel.sweep.commands import sweep

LR = click.FloatRange(min=0, min_open=True, max=1000)


@click.group(context_settings={"help_option_names": ["-h", "--help"], **WIDE})
@click.version_option(__version__)
def main() -> None:
    """CIFAR-10 training on Hugging Face Accelerate: one loop, the same run everywhere."""


@main.command(context_settings=WIDE)
@settings_flags
@exits_with_one_line
def train(**flags: Any) -> None:
    """Train; every flag is a setting. For several processes: accelerate launch -m cifar10_accel.train ..."""
    settings = Settings(**flags)
    from cifar10_accel import train as verb

    verb.train(settings)


@main.command()
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option("--tta", metavar="none|flip|multicrop", help="test-time augmentation, printed beside the plain number")
@click.option("--data-dir", help="where the data set is; default: as in the run")
@click.option("--eval-batch-size", metavar="INT", help="images per batch; default: as in the run")
@click.option("--precision", metavar="no|fp16|bf16", help="default: as in the run")
@click.option("--json", "as_json", is_flag=True, help="print the metrics as JSON")
@exits_with_one_line
def evaluate(run_or_checkpoint: Path, as_json: bool, **given: str | None) -> None:
    """Evaluate a run folder, or one of its checkpoints, on the whole test set."""
    overrides = {name: value for name, value in given.items() if value is not None}
    Settings(**overrides)  # a wrong value answers before torch is imported
    from rich.console import Console

    from cifar10_accel import evaluate as verb
    from cifar10_accel.results import labelled

    evaluation, settings = verb.evaluate(run_or_checkpoint, overrides=overrides)
    if not is_main_rank():
        return
    if as_json:
        click.echo(json.dumps(evaluation.metrics(), indent=1))
        return
    console = Console(highlight=False)
    console.print(evaluation.table(f"{run_or_checkpoint}, {labelled(settings.dataset)} test set"))
    console.print(evaluation.headline(settings.dataset))


@main.command(context_settings=WIDE)
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="classes shown for each image")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--skip-bad", is_flag=True, help="exit with 0 although some files could not be read")
@click.option("--grad-cam", "overlays", type=click.Path(path_type=Path), metavar="FOLDER",
              help="write a picture of each image beside what spoke for its class")  # fmt: skip
@exits_with_one_line
def predict(
    run_or_checkpoint: Path, images: tuple[Path, ...], top: int, form: str, skip_bad: bool, overlays: Path | None
) -> None:
    """Predict the class of image files, of any size and kind, with a trained run."""
    from rich.console import Console

    from cifar10_accel import predict as verb

    predictions = verb.predict(run_or_checkpoint, images, top=top, overlays=overlays)
    if form == "table":
        Console(highlight=False).print(verb.as_table(predictions))
    else:
        click.echo(verb.as_csv(predictions) if form == "csv" else verb.as_json(predictions))
    faults = [prediction.fault for prediction in predictions if prediction.fault]
    for fault in faults:
        click.secho(f"error: {fault}", fg="red", err=True)
    if faults and not skip_bad:
        raise SystemExit(InputError.exit_code)


@main.command(context_settings=WIDE)
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["safetensors", "onnx", "torch-export", "hub"]), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file to write; for hub a folder")
@exits_with_one_line
def export(run_or_checkpoint: Path, form: Any, out: Path) -> None:
    """Write a trained net for other programs; kept only if it behaves like the original on the test images."""
    from cifar10_accel import export as verb

    parity = verb.export(run_or_checkpoint, out, form=form)
    click.echo(f"{out}: {parity}")
    if form == "hub":
        click.echo(f"to publish it: hf upload USER/NAME {out}")


@main.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--wandb", metavar="ENTITY/PROJECT", help="make a report of this project in W&B instead")
@click.option("--sweep", metavar="ID", help="with --wandb: of this sweep only")
@click.option("--grad-cam", is_flag=True, help="show where the net looked in its most confident mistakes")
@click.option("--data-dir", type=click.Path(path_type=Path), help="where the data set is; default: as in the run")
@exits_with_one_line
def report(run: Path | None, wandb: str | None, sweep: str | None, grad_cam: bool, data_dir: Path | None) -> None:
    """Write a run's report.html, a page with all that is known of it, and print its path; or report to W&B."""
    if (run is None) == (wandb is None) or (sweep and not wandb) or (grad_cam and wandb):
        raise click.UsageError("give either RUN or --wandb ENTITY/PROJECT, and --sweep only with --wandb")
    if wandb is not None:
        from cifar10_accel import wandb_report

        click.echo(wandb_report.create(wandb, sweep=sweep))
    elif run is not None:
        from cifar10_accel import report as verb

        click.echo(verb.report(run, grad_cam=grad_cam, data_dir=data_dir))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("compare.html"), show_default=True,
              help="page to write")  # fmt: skip
@exits_with_one_line
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """Compare finished runs: settings, curves, seeds, and image by image the first two."""
    if len(runs) < 2:
        raise click.UsageError("give two run folders or more")
    from rich.console import Console

    from cifar10_accel import compare as verb

    comparison = verb.compare(runs, out=out)
    console = Console(highlight=False)
    for table in verb.tables(comparison):
        console.print(table)
    for line in verb.in_words(comparison):
        click.echo(line)
    click.echo(f"page: {out}")


@main.command()
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(min=1), help="so many of the test images, evenly spread  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of the noise")
@click.option("--data-dir", help="where the data set is; default: as in the run")
@click.option("--eval-batch-size", metavar="INT", help="images per batch; default: as in the run")
@exits_with_one_line
def robustness(run_or_checkpoint: Path, images: int | None, seed: int, **given: str | None) -> None:
    """Evaluate a trained run on corrupted test images: six kinds, five severities; the run's report shows it too."""
    overrides = {name: value for name, value in given.items() if value is not None}
    Settings(**overrides)
    from rich.console import Console

    from cifar10_accel import robustness as verb
    from cifar10_accel.report import report

    result = verb.robustness(run_or_checkpoint, num_images=images, seed=seed, overrides=overrides)
    if not is_main_rank():
        return
    for table in verb.tables(result):
        Console(highlight=False).print(table)
    click.echo(f"look at it in {report(verb.folder_of(run_or_checkpoint))}; the numbers are in robustness.json")


@main.command(context_settings=WIDE)
@click.argument("run_or_checkpoint", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(min=1), default=10_000, show_default=True,
              help="training images to find the nearest among, evenly spread")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), help="where the data set is; default: as in the run")
@click.option("--port", type=click.IntRange(1, 65535), help="of the page  [default: the first free one from 7860]")
@exits_with_one_line
def demo(run_or_checkpoint: Path, images: int, data_dir: Path | None, port: int | None) -> None:
    """Open a local web page: drop an image, see probabilities, Grad-CAM and the nearest training images."""
    from cifar10_accel import demo as verb

    verb.demo(run_or_checkpoint, num_images=images, data_dir=data_dir, port=port)


@main.command("lr-range", context_settings=WIDE)
@click.option("--start-lr", type=LR, default=1e-4, show_default=True, help="first LR")
@click.option("--end-lr", type=LR, default=10, show_default=True, help="last LR")
@click.option("--steps", type=click.IntRange(min=10), default=150, show_default=True, help="updates")
@click.option("--growth", type=click.Choice(["exponential", "linear"]), default="exponential", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/lr-range"), show_default=True,
              help="folder for lr_range.json and lr_range.png")  # fmt: skip
@click.option("--write-sweep", type=click.Path(path_type=Path), metavar="FILE",
              help="sweep file that gets the bounds found for max_lr; its comments stay")  # fmt: skip
@settings_flags
@exits_with_one_line
def lr_range(
    start_lr: float, end_lr: float, steps: int, growth: Any, out: Path, write_sweep: Path | None, **flags: Any
) -> None:
    """Find a max LR: train while the LR grows, plot loss and accuracy against it."""
    settings = Settings(**flags)
    from cifar10_accel.sweep import bounds

    if write_sweep:
        bounds.require_max_lr_bounds(write_sweep)  # before the test, not after it
    from cifar10_accel import lr_range as verb
    from cifar10_accel.schedule import LrRange

    schedule = LrRange(total_steps=steps, min_lr=start_lr, max_lr=end_lr, growth=growth)
    result = verb.lr_range(settings, schedule=schedule)
    if not is_main_rank():
        return
    verb.write(result, out)
    if result.reason:
        click.echo(f"no suggestion: {result.reason}")
    else:
        click.echo(f"steepest fall of the loss at LR {result.steepest:.3g}")
        if result.tenth_of_minimum is None:
            click.echo(f"the loss still fell at LR {result.lr[-1]:.3g}: a higher --end-lr shows where it ends")
        else:
            click.echo(f"a tenth of the LR with the lowest loss: {result.tenth_of_minimum:.3g}")
    if write_sweep:
        lowest = result.lr[-1] if result.tenth_of_minimum is None else 10 * result.tenth_of_minimum
        click.echo(bounds.write_found(write_sweep, steepest=result.steepest, lowest=lowest))
    click.echo(f"curve: {out / 'lr_range.png'}, numbers: {out / 'lr_range.json'}")


@main.command(context_settings=WIDE)
@settings_flags
@exits_with_one_line
def models(**flags: Any) -> None:
    """Describe the nets, and the one of --model layer by layer: parameters, FLOPs per image, receptive field."""
    settings = Settings(**flags)
    from rich.console import Console

    from cifar10_accel.models.summary import layers_table, nets_table

    console = Console(highlight=False)
    console.print(layers_table(settings, num_classes=10))
    console.print(nets_table(settings, num_classes=10))


@main.command()
@exits_with_one_line
def recipes() -> None:
    """List the recipes that come with the package."""
    for name in recipe_names():
        comment = [line for line in recipe_path(name).read_text().splitlines() if line.startswith("#")]
        click.secho(name, bold=True)
        for line in comment:
            click.echo(f"  {line.removeprefix('# ')}")


for command in (data, doctor, verify_parallel, verify_resume, repeat, sweep):
    main.add_command(command)
