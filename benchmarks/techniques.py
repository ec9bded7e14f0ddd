"""Ablation of a recipe's techniques: `python -m benchmarks.techniques --recipe cpu --epochs 4 --width 8`.

Compares the recipe with itself without one technique, with the same seeds: order, augmentation and hold-out of a pair
are the same. Evaluated on held-out training images, never on the test set. The same command again continues.
"""

from collections.abc import Mapping
from typing import Any

import click

from benchmarks.accuracy import describe_missing
from benchmarks.machine import describe_machine
from benchmarks.trainings import (
    HOLD_OUT,
    MINUTES,
    WORKERS,
    benchmark_flags,
    describe_images,
    mean_and_interval,
    seeds_option,
    summaries,
    train_for,
)
from cifar10_accel.cli.flags import handle_user_errors, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.commands.repeat import SeedRun, plan
from cifar10_accel.commands.statistics import SampleStats
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings

# The settings that disable each technique. Techniques that a recipe does not have are skipped; each of its
# augmentations is one more technique.
TECHNIQUES: dict[str, dict[str, Any]] = {
    "whitening stem": {"whitening": False},
    "identity initialisation": {"identity_init": False},
    "norm scales that stay fixed": {"norm_scale": True},
    "norm gain": {"norm_gain": 1.0},
    "high LR of biases": {"bias_lr_factor": 1.0},
    "Muon": {"optimizer": "sgd"},
    "label smoothing": {"label_smoothing": 0.0},
    "progressive resizing": {"low_res_fraction": 0.0},
    "alternating flip": {"flip_mode": "random"},
    "reflecting pad": {"pad_mode": "constant"},
    "averaged weights": {"ema_decay": None},
    "smooth activation": {"activation": "relu"},
    "scaled logits": {"logit_scale": 1.0},
    "MixUp": {"mixup_alpha": None},
    "CutMix": {"cutmix_alpha": None},
}
Summaries = Mapping[int, Mapping[str, Any]]  # by seed


@click.command(cls=SettingsCommand)
@seeds_option(default=3)
@MINUTES
@WORKERS
@click.option("--only", metavar="NAME", multiple=True, help="technique to remove  [default: each of them]")
@settings_options
@handle_user_errors
def main(seeds: int, minutes: float, workers: int | None, only: tuple[str, ...], **flags: Any) -> None:
    """Compare a recipe with itself without one technique, on a hold-out, with paired seeds."""
    groups = plan_groups({"val_size": HOLD_OUT} | benchmark_flags(flags), num_seeds=seeds)
    if unknown := set(only) - set(groups):
        has = ", ".join(repr(name) for name in groups if name)
        raise SettingsError(f"--only: the recipe has no {min(unknown)!r} to remove; it has {has}")
    if only:
        groups = {name: runs for name, runs in groups.items() if name in ("", *only)}
    runs = [run for pair in zip(*groups.values(), strict=True) for run in pair]  # complete pairs first
    missing = train_for(minutes, runs, num_workers=workers, echo=click.echo)
    click.echo(f"\n{describe_machine()}\n")
    click.echo(table({name: summaries(group) for name, group in groups.items()}, runs[0].settings))
    if missing:
        click.echo(describe_missing(missing, len(runs)))


def plan_groups(flags: dict[str, Any], *, num_seeds: int) -> dict[str, list[SeedRun]]:
    """Return the recipe's runs under "", and those without each of its techniques, by the technique's name."""
    name, runs = plan(flags, num_seeds=num_seeds)
    groups, names = {"": runs}, {name}
    base = runs[0].settings
    augmentations = {
        f"augmentation: {one}": {"augment": [other for other in base.augment if other != one]} for one in base.augment
    }
    for technique, without in (TECHNIQUES | augmentations).items():
        name, runs = plan(flags | {"recipe": base.recipe} | without, num_seeds=num_seeds)
        if name not in names:
            groups[technique], names = runs, names | {name}
    return groups


def table(found: Mapping[str, Summaries], settings: Settings) -> str:
    """Return a table with a row per technique: accuracy without it, its gain, and the training time without it."""
    with_tta = settings.tta != "none"
    metric = "val/accuracy_tta" if with_tta else "val/accuracy"
    base = found[""]
    lines = [
        f"{settings.recipe}, {settings.epochs} epochs, width {settings.width}: {describe_images(base, settings)}, "
        + (f"with TTA ({settings.tta})" if with_tta else "without TTA"),
        "\n| without | accuracy | gain, points, 95% interval of pairs | pairs | training time without it |",
        "|---|---:|---:|---:|---:|",
    ]
    if base:
        accuracy = mean_and_interval(SampleStats.of([float(summary[metric]) for summary in base.values()]))
        lines.append(f"| (nothing: the recipe) | {accuracy} | | {len(base)} | 1.00x |")
    lines += [_row(name, base, without, metric, metric) for name, without in found.items() if name]
    if with_tta:
        lines.append(_row("TTA", base, base, metric, "val/accuracy"))
    return "\n".join(lines)


def _row(name: str, base: Summaries, without: Summaries, metric: str, metric_without: str) -> str:
    pairs = [(base[seed], summary) for seed, summary in without.items() if seed in base]
    if not pairs:
        return f"| {name} | - | - | 0 | - |"
    accuracy = SampleStats.of([float(other[metric_without]) for _, other in pairs])
    gain = SampleStats.of([float(one[metric]) - float(other[metric_without]) for one, other in pairs])
    half = f" +- {100 * (gain.high - gain.mean):.2f}" if gain.num > 1 else ""
    ratio = sum(other["train_seconds"] for _, other in pairs) / sum(one["train_seconds"] for one, _ in pairs)
    return f"| {name} | {mean_and_interval(accuracy)} | {100 * gain.mean:+.2f}{half} | {gain.num} | {ratio:.2f}x |"


if __name__ == "__main__":
    main()
