"""Accuracy of a recipe over seeds: `python -m benchmarks.accuracy --recipe resnet9 --seeds 5`.

The accuracy is that of the last epoch, plain and with TTA. The same command again continues, for `--minutes` at most,
until all seeds are trained. `--holdout` evaluates on held-out training images instead of the test set, for choices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from benchmarks.machine import describe_machine
from benchmarks.trainings import (
    HOLD_OUT,
    MINUTES,
    WORKERS,
    benchmark_flags,
    describe_images,
    has_diverged,
    mean_and_interval,
    percent,
    seeds_option,
    summaries,
    train_for,
)
from cifar10_accel.cli.flags import handle_user_errors, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.commands.repeat import SeedRun, plan
from cifar10_accel.commands.statistics import SampleStats
from cifar10_accel.settings import Settings


@click.command(cls=SettingsCommand)
@seeds_option(default=5)
@MINUTES
@WORKERS
@click.option("--holdout", is_flag=True, help=f"measure on {HOLD_OUT:,} training images held out (or --val-size)")
@click.option("--bar", metavar="PERCENT", type=float, default=94.0, show_default=True, help="count seeds that reach it")
@settings_options
@handle_user_errors
def main(seeds: int, minutes: float, workers: int | None, holdout: bool, bar: float, **flags: Any) -> None:
    """Measure the mean accuracy of a recipe over seeds; can be stopped and continued."""
    given = ({"val_size": HOLD_OUT} if holdout else {}) | benchmark_flags(flags)
    name, runs = plan(given, num_seeds=seeds)
    missing = train_for(minutes, runs, num_workers=workers, echo=click.echo)
    click.echo(f"\n{describe_machine()}\n")
    click.echo(table(name, summaries(runs), runs[0].settings, bar=bar / 100))
    if missing:
        click.echo(describe_missing(missing, len(runs)))


def table(name: str, found: Mapping[int, Mapping[str, Any]], settings: Settings, *, bar: float) -> str:
    """Return a row for the plain accuracy, one with TTA if the recipe has it, and the training time."""
    if not found:
        return f"{name}: no run is finished yet"
    lines = [
        f"| {name}: {describe_images(found, settings)} | mean, 95% interval | sd | min | n | >= {100 * bar:.4g}% |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    split = "val" if settings.val_size else "test"
    for title, metric in (("plain", f"{split}/accuracy"), (f"TTA ({settings.tta})", f"{split}/accuracy_tta")):
        values = [float(summary[metric]) for summary in found.values() if metric in summary]
        if values:
            lines.append(f"| {title} | {_cells(SampleStats.of(values))} | {sum(value >= bar for value in values)} |")
    seconds = SampleStats.of([float(summary["train_seconds"]) for summary in found.values()])
    rate = SampleStats.of([float(summary["images_per_second"]) for summary in found.values()])
    lines.append(
        f"\ntraining: mean {seconds.mean:,.1f} s, min {seconds.minimum:,.1f}, max {seconds.maximum:,.1f}; "
        f"{rate.mean:,.0f} images/s"
    )
    return "\n".join(lines)


def describe_missing(missing: Sequence[SeedRun], num_runs: int) -> str:
    """Return the number of missing runs, and whether the same command trains them."""
    diverged = sum(map(has_diverged, missing))
    lost = f", of which {diverged} diverged" if diverged else ""
    more = "; the same command continues" if diverged < len(missing) else ""
    return f"missing: {len(missing)} of {num_runs} runs{lost}{more}"


def _cells(values: SampleStats) -> str:
    return f"{mean_and_interval(values)} | {percent(values.sd)} | {percent(values.minimum)} | {values.num}"


if __name__ == "__main__":
    main()
