"""LR range test: train a new model while the LR grows, and find the LR at which the loss falls fastest.

(Smith 2015, https://arxiv.org/abs/1506.01186; smoothing and stopping as in fastai.) No run folder is written.
"""

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from cifar10_accel.errors import NonFiniteError
from cifar10_accel.files import output_of
from cifar10_accel.settings import Settings
from cifar10_accel.tracking.progress import track
from cifar10_accel.training.oom import fit_micro_batch
from cifar10_accel.training.optimization.lr_schedule import LrRange
from cifar10_accel.training.setup import set_up_run
from cifar10_accel.training.state import build_state
from cifar10_accel.training.step import train_step

SMOOTHING = 0.9  # of the running mean of the loss, whose start is corrected as in Adam
DIVERGED = 4.0  # times the best smoothed loss: the test stops
LEAST_FALL = 0.05  # relative fall of the smoothed loss below which the curve counts as flat


@dataclass(frozen=True, kw_only=True)
class LrRangeResult:
    """The curve, one entry per step, and the LRs it suggests; None, with the reason, if it suggests none."""

    lr: list[float]
    loss: list[float]  # mean over the global batch
    smoothed_loss: list[float]
    accuracy: list[float]  # 0..1, on the augmented batch
    steepest: float | None  # LR at which the smoothed loss falls fastest per factor of LR
    tenth_of_minimum: float | None  # a tenth of the LR with the lowest smoothed loss; None if it fell to the end
    reason: str  # why there is no suggestion; empty if there is one
    dataset: str


def lr_range(settings: Settings, *, schedule: LrRange) -> LrRangeResult:
    """Run the test with the model, data and optimizer of the settings. All ranks must call this; all get the same.

    Losses are means over all ranks, so every rank stops at the same step.
    """
    setup = set_up_run(settings)
    state = build_state(setup)
    setup = fit_micro_batch(state, setup)
    lrs: list[float] = []
    losses: list[float] = []
    accuracies: list[float] = []
    steps = setup.loader.batches(0, schedule.total_steps)
    is_main = setup.accelerator.is_main_process
    for batches in track(steps, "LR range test", num_steps=schedule.total_steps, is_main=is_main):
        lr = schedule.lr_at(len(lrs))
        try:
            totals = train_step(state, batches, lr=lr)
        except NonFiniteError:
            break
        loss, correct, num_images = setup.accelerator.reduce(totals).tolist()
        if not math.isfinite(loss):
            break
        lrs.append(lr)
        losses.append(loss / num_images)
        accuracies.append(correct / num_images)
        smoothed = smooth(losses)
        if smoothed[-1] > DIVERGED * min(smoothed):
            break
    return suggest(lrs, losses, accuracies, dataset=setup.dataset.name)


def smooth(losses: list[float]) -> list[float]:
    """Return the exponential running mean with bias correction, one value per loss."""
    smoothed, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed


def suggest(lrs: list[float], losses: list[float], accuracies: list[float], *, dataset: str) -> LrRangeResult:
    """Return the result of a curve, without a suggestion if the loss hardly falls or diverges at once."""
    smoothed = smooth(losses)
    reason = _reason_for_none(smoothed)
    lowest = smoothed.index(min(smoothed)) if smoothed else 0
    return LrRangeResult(
        lr=lrs,
        loss=losses,
        smoothed_loss=smoothed,
        accuracy=accuracies,
        steepest=None if reason else lrs[_steepest(lrs, smoothed, lowest)],
        tenth_of_minimum=None if reason or lowest == len(lrs) - 1 else lrs[lowest] / 10,
        reason=reason,
        dataset=dataset,
    )


def write(result: LrRangeResult, folder: Path) -> None:
    """Write lr_range.json and lr_range.png into the folder. Only the main process may call this.

    Raises:
        SettingsError: The folder cannot be written.
    """
    from cifar10_accel.report.figures import LrRangeCurves, draw_lr_range

    curves = LrRangeCurves(lr=result.lr, loss=result.loss, smoothed_loss=result.smoothed_loss, accuracy=result.accuracy)
    with output_of("out", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lr_range.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
        draw_lr_range(
            curves,
            folder / "lr_range.png",
            title=f"LR range test, {result.dataset}",
            suggestions={"steepest": result.steepest, "minimum / 10": result.tenth_of_minimum},
        )


def _reason_for_none(smoothed: list[float]) -> str:
    if len(smoothed) < 10:
        return f"the loss diverged after {len(smoothed)} steps; start at a lower LR"
    lowest = smoothed.index(min(smoothed))
    if smoothed[0] - smoothed[lowest] < LEAST_FALL * smoothed[0]:
        return "the loss never fell by 5%; end at a higher LR or give more --steps"
    if lowest < 5:
        return "the loss only rose; start at a lower LR"
    return ""


def _steepest(lrs: list[float], smoothed: list[float], lowest: int) -> int:
    """Return the index of the step before which the loss fell fastest per factor of LR, up to the lowest loss."""
    falls = [
        (before - after) / math.log(lr_after / lr_before)
        for (before, after), (lr_before, lr_after) in zip(
            pairwise(smoothed[: lowest + 1]), pairwise(lrs[: lowest + 1]), strict=True
        )
    ]
    return 1 + falls.index(max(falls))
