"""The command `cifar10-accel`: a group of verbs. Bodies import what they need, so that help is instant."""

import json
import secrets
import sys
from pathlib import Path
from typing import Any

import click

from cifar10_accel import __version__
from cifar10_accel.errors import InputError
from cifar10_accel.flags import exits_with_one_line, is_main_rank, settings_flags
from cifar10_accel.recipes import recipe_names, recipe_path
from cifar10_accel.settings import Settings

WIDE = {"max_content_width": 120}
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
@exits_with_one_line
def predict(run_or_checkpoint: Path, images: tuple[Path, ...], top: int, form: str, skip_bad: bool) -> None:
    """Predict the class of image files, of any size and kind, with a trained run."""
    from rich.console import Console

    from cifar10_accel import predict as verb

    predictions = verb.predict(run_or_checkpoint, images, top=top)
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


@main.command("lr-range", context_settings=WIDE)
@click.option("--start-lr", type=LR, default=1e-4, show_default=True, help="first LR")
@click.option("--end-lr", type=LR, default=10, show_default=True, help="last LR")
@click.option("--steps", type=click.IntRange(min=10), default=150, show_default=True, help="updates")
@click.option("--growth", type=click.Choice(["exponential", "linear"]), default="exponential", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/lr-range"), show_default=True,
              help="folder for lr_range.json and lr_range.png")  # fmt: skip
@settings_flags
@exits_with_one_line
def lr_range(start_lr: float, end_lr: float, steps: int, growth: Any, out: Path, **flags: Any) -> None:
    """Find a max LR: train while the LR grows, plot loss and accuracy against it."""
    settings = Settings(**flags)
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


@main.group()
def data() -> None:
    """Fetch, verify or look at the data set."""


DATA_DIR = click.option("--data-dir", help="folder of the data set; default: CIFAR10_ACCEL_DATA_DIR or data")


@data.command()
@DATA_DIR
@exits_with_one_line
def fetch(data_dir: str | None) -> None:
    """Download CIFAR-10 if it is not there; a download that was cut off continues."""
    folder = _data_dir(data_dir)
    from cifar10_accel.data import download

    download.fetch(folder)
    click.echo(f"CIFAR-10 is in {folder}")


@data.command()
@DATA_DIR
@exits_with_one_line
def verify(data_dir: str | None) -> None:
    """Check every file against its published digest."""
    from cifar10_accel.data import official

    for path, state in official.verify(_data_dir(data_dir)):
        click.echo(f"{path}: {state}")


@data.command(context_settings=WIDE)
@click.option(
    "--epoch", "shown_epochs", type=click.IntRange(min=0), multiple=True, help="epochs to show  [default: 0 to 7]"
)
@click.option(
    "--index", "shown_indices", type=click.IntRange(min=0), multiple=True, help="training images  [default: 0 to 7]"
)
@click.option("--compare", is_flag=True, help="show both augmentation backends, image by image")
@click.option("--out", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True)
@settings_flags
@exits_with_one_line
def preview(
    shown_epochs: tuple[int, ...], shown_indices: tuple[int, ...], compare: bool, out: Path, **flags: Any
) -> None:
    """Draw training images exactly as the net sees them: one row per image, one column per epoch."""
    settings = Settings(**flags)
    from cifar10_accel import preview as verb

    epochs, indices = shown_epochs or tuple(range(8)), shown_indices or tuple(range(8))
    verb.preview(settings, epochs=epochs, indices=indices, compare=compare, path=out)
    click.echo(f"{out}")


DIR = click.option("--dir", "folder", type=click.Path(path_type=Path),
                   help="new folder to keep everything in  [default: a temporary one]")  # fmt: skip


class _Counts(click.ParamType[list[int]]):
    """Numbers of processes, as 1,2,4."""

    name = "INT,INT..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is no list of process counts; give one like 1,2,4", param, ctx)
        return sorted({int(word) for word in words})


@main.command("verify-parallel", context_settings=WIDE)
@click.option("--procs", type=_Counts(), help="numbers of processes  [default: 1,2,4 as far as the machine allows]")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="updates")
@DIR
@settings_flags
@exits_with_one_line
def verify_parallel(procs: list[int] | None, steps: int, folder: Path | None, **flags: Any) -> None:
    """Check that N processes do what one does: LR, images, pixels bit for bit, loss and gradient closely."""
    from cifar10_accel import verify_parallel as verb
    from cifar10_accel.children import working_folder

    with working_folder(folder) as place:
        comparisons = verb.verify_parallel(flags, counts=procs, num_steps=steps, folder=place)
    _conclude(verb.table(comparisons), verb.explanation(comparisons), [f for c in comparisons for f in c.faults])


@main.command("verify-resume", context_settings=WIDE)
@click.option("--kills", type=click.IntRange(min=1), default=3, show_default=True, help="times the run is killed")
@click.option("--kill-seed", type=int, help="seed of the moments  [default: a new one, which is printed]")
@DIR
@settings_flags
@exits_with_one_line
def verify_resume(kills: int, kill_seed: int | None, folder: Path | None, **flags: Any) -> None:
    """Check that a training killed at random moments ends with the bits of one that is not."""
    from cifar10_accel import verify_resume as verb
    from cifar10_accel.children import working_folder

    seed = secrets.randbelow(1 << 31) if kill_seed is None else kill_seed
    click.echo(f"the moments of the kills are drawn from --kill-seed {seed}")
    with working_folder(folder) as place:
        outcome = verb.verify_resume(flags, num_kills=kills, seed=seed, folder=place, say=click.echo)
    _conclude(verb.table(outcome), verb.explanation(outcome), outcome.faults)


@main.command(context_settings=WIDE)
@settings_flags
@exits_with_one_line
def doctor(**flags: Any) -> None:
    """Check machine, launch, data and speed for a training with these settings; nothing is changed or downloaded."""
    settings = Settings(**flags)
    from cifar10_accel import doctor as verb

    exit_code = 0
    for check in verb.examine(settings):
        if is_main_rank():
            color = {"ok": "green", "warning": "yellow", "error": "red"}[check.level]
            click.echo(f"{click.style(f'{check.level:8}', fg=color)} {check.text}")
            if check.remedy:
                click.echo(f"         -> {check.remedy}")
        exit_code = max(exit_code, check.exit_code if check.level == "error" else 0)
    sys.exit(exit_code)


@main.command(context_settings=WIDE)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="runs; the first is --seed")
@click.option("--against", metavar="RECIPE", help="another recipe, trained with the same seeds and compared")
@click.option("--workers", type=click.IntRange(min=1), help="runs at a time  [default: one per GPU, or one]")
@settings_flags
@exits_with_one_line
def repeat(seeds: int, against: str | None, workers: int | None, **flags: Any) -> None:
    """Train several seeds: mean, spread and each run; finished ones are not trained again."""
    Settings(**flags)
    from cifar10_accel import repeat as verb

    outcome = verb.repeat(flags, num_seeds=seeds, against=against, num_workers=workers, say=click.echo)
    _conclude(verb.table(outcome), verb.in_words(outcome), faults=[])


def _conclude(table: Any, notes: str, faults: list[str]) -> None:
    """Prints what a verification found; exit 1 if something is not as promised."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(notes)
    for fault in faults:
        click.secho(f"FAULT: {fault}", fg="red", err=True)
    if faults:
        sys.exit(1)


def _data_dir(given: str | None) -> Path:
    return Settings(**({} if given is None else {"data_dir": given})).data_dir


if __name__ == "__main__":
    main()
