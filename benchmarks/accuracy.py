"""The accuracy of a recipe over seeds: `python -m benchmarks.accuracy --recipe resnet24 --seeds 5`.

Of the last epoch, plain and with TTA. The same command again continues, for `--minutes` at most, until all seeds
are there; `--holdout` looks at training images held out instead of the test set, so that choices can be made.
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
    has_diverged,
    images_of,
    mean_and_interval,
    percent,
    seeds_option,
    summaries,
    train_for,
)
from cifar10_accel.flags import WIDE, exits_with_one_line, settings_flags
from cifar10_accel.repeat import Seed, plan
from cifar10_accel.settings import Settings
from cifar10_accel.spread import Spread


@click.command(context_settings=WIDE)
@seeds_option(default=5)
@MINUTES
@WORKERS
@click.option("--holdout", is_flag=True, help=f"measure on {HOLD_OUT:,} training images held out (or --val-size)")
@click.option("--bar", metavar="PERCENT", type=float, default=94.0, show_default=True, help="count seeds that reach it")
@settings_flags
@exits_with_one_line
def main(seeds: int, minutes: float, workers: int | None, holdout: bool, bar: float, **flags: Any) -> None:
    """Mean and spread of a recipe's accuracy over seeds, trained in pieces that add up."""
    given = ({"val_size": HOLD_OUT} if holdout else {}) | benchmark_flags(flags)
    name, runs = plan(given, num_seeds=seeds)
    missing = train_for(minutes, runs, num_workers=workers, say=click.echo)
    click.echo(f"\n{describe_machine()}\n")
    click.echo(table(name, summaries(runs), runs[0].settings, bar=bar / 100))
    if missing:
        click.echo(how_many_are_missing(missing, len(runs)))


def table(name: str, found: Mapping[int, Mapping[str, Any]], settings: Settings, *, bar: float) -> str:
    """A row for the plain accuracy and one with TTA, if the recipe has it; then the seconds of training."""
    if not found:
        return f"{name}: no run is finished yet"
    lines = [
        f"| {name}: {images_of(found, settings)} | mean, 95% interval | sd | min | n | >= {100 * bar:.4g}% |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    split = "val" if settings.val_size else "test"
    for title, metric in (("plain", f"{split}/accuracy"), (f"TTA ({settings.tta})", f"{split}/accuracy_tta")):
        values = [float(summary[metric]) for summary in found.values() if metric in summary]
        if values:
            lines.append(f"| {title} | {_cells(Spread.of(values))} | {sum(value >= bar for value in values)} |")
    seconds = Spread.of([float(summary["train_seconds"]) for summary in found.values()])
    rate = Spread.of([float(summary["images_per_second"]) for summary in found.values()])
    lines.append(f"\ntraining: mean {seconds.mean:,.1f} s, min {seconds.minimum:,.1f}, max {seconds.maximum:,.1f}; "
                 f"{rate.mean:,.0f} images/s")  # fmt: skip
    return "\n".join(lines)


def how_many_are_missing(missing: Sequence[Seed], num_runs: int) -> str:
    """What is not there yet, and whether it will be."""
    diverged = sum(map(has_diverged, missing))
    lost = f", of which {diverged} diverged" if diverged else ""
    more = "; the same command continues" if diverged < len(missing) else ""
    return f"missing: {len(missing)} of {num_runs} runs{lost}{more}"


def _cells(values: Spread) -> str:
    return f"{mean_and_interval(values)} | {percent(values.sd)} | {percent(values.minimum)} | {values.num}"


if __name__ == "__main__":
    main()
