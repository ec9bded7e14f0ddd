"""LR range test: train a fresh net while the LR grows, and read off where learning is fastest.

(Smith 2015, https://arxiv.org/abs/1506.01186; the smoothing and the stop follow the form that
fastai made common.) Nothing else is touched: no run folder, no net that is being trained.
"""

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from rich.progress import track

from cifar10_accel.data.batches import BatchPlan, training_batches
from cifar10_accel.data.cifar10 import load
from cifar10_accel.engine import train_step
from cifar10_accel.errors import NonFiniteError, SettingsError
from cifar10_accel.launch import make_accelerator, training_dtype, without_auto
from cifar10_accel.memory import fit_in_memory
from cifar10_accel.schedule import LrRange
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import build_state

SMOOTHING = 0.9  # of the running mean of the loss, whose start is corrected as in Adam
DIVERGED = 4.0  # times the best smoothed loss: the test stops
LEAST_FALL = 0.05  # relative fall of the smoothed loss below which the curve counts as flat


@dataclass(frozen=True, kw_only=True)
class LrRangeResult:
    """The curve, one entry per update, and what it suggests: None, with the reason, where it shows nothing."""

    lr: list[float]
    loss: list[float]  # mean over the global batch
    smoothed_loss: list[float]
    accuracy: list[float]  # 0..1, on the augmented batch
    steepest: float | None  # LR at which the smoothed loss falls fastest per factor of LR
    tenth_of_minimum: float | None  # a tenth of the LR with the lowest smoothed loss; None if it fell to the end
    reason: str  # why there is no suggestion; empty if there is one
    dataset: str


def lr_range(settings: Settings, *, schedule: LrRange) -> LrRangeResult:
    """Runs the test on the net, data and optimizer of the settings. All ranks must call this; all get the same.

    Losses are means over all ranks, so every rank stops at the same update.
    """
    accelerator = make_accelerator(settings)
    settings = without_auto(settings, on_cpu=accelerator.device.type == "cpu")
    dataset = load(settings, seed=settings.seed)
    plan = BatchPlan.of(settings, accelerator, num_images=len(dataset.train.labels))
    state = build_state(settings, accelerator, dataset)
    plan = fit_in_memory(state, dataset.train, plan, settings)
    batches_of_updates = training_batches(
        dataset.train, plan, settings, start_step=0, stop_step=schedule.total_steps,
        device=accelerator.device, dtype=training_dtype(accelerator),
    )  # fmt: skip
    lrs: list[float] = []
    losses: list[float] = []
    accuracies: list[float] = []
    hidden = not accelerator.is_main_process
    for batches in track(
        batches_of_updates, "LR range test", total=schedule.total_steps, disable=hidden, transient=True
    ):
        lr = schedule.lr_at(len(lrs))
        try:
            totals = train_step(
                accelerator, state.model, state.optimizer, batches, lr=lr, settings=settings, average=state.average
            )
        except NonFiniteError:
            break
        loss, right, num_images = accelerator.reduce(totals).tolist()
        if not math.isfinite(loss):
            break
        lrs.append(lr)
        losses.append(loss / num_images)
        accuracies.append(right / num_images)
        smoothed = smooth(losses)
        if smoothed[-1] > DIVERGED * min(smoothed):
            break
    return suggest(lrs, losses, accuracies, dataset=dataset.name)


def smooth(losses: list[float]) -> list[float]:
    """Exponential running mean with its start corrected, one value per loss."""
    smoothed, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed


def suggest(lrs: list[float], losses: list[float], accuracies: list[float], *, dataset: str) -> LrRangeResult:
    """The result of a curve; no suggestion, rather than a wrong one, from a curve that shows nothing."""
    smoothed = smooth(losses)
    reason = _why_not(smoothed)
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
    """Writes lr_range.json and lr_range.png into the folder. Only the main process may call this."""
    from cifar10_accel.pictures import draw_lr_range

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lr_range.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    except OSError as error:
        raise SettingsError(f"out: {folder} cannot be written ({error.strerror}); give another --out") from None
    draw_lr_range(result.lr, result.loss, result.smoothed_loss, result.accuracy, folder / "lr_range.png",
                  title=f"LR range test, {result.dataset}", suggestions={
                      "steepest": result.steepest, "minimum / 10": result.tenth_of_minimum})  # fmt: skip


def _why_not(smoothed: list[float]) -> str:
    if len(smoothed) < 10:
        return f"the loss diverged after {len(smoothed)} updates; start at a lower LR"
    lowest = smoothed.index(min(smoothed))
    if smoothed[0] - smoothed[lowest] < LEAST_FALL * smoothed[0]:
        return "the loss never fell by 5%; end at a higher LR or take more updates"
    if lowest < 5:
        return "the loss only rose; start at a lower LR"
    return ""


def _steepest(lrs: list[float], smoothed: list[float], lowest: int) -> int:
    """Index of the update before which the loss fell fastest per factor of LR, up to the lowest loss."""
    falls = [
        (before - after) / math.log(lr_after / lr_before)
        for (before, after), (lr_before, lr_after) in zip(
            pairwise(smoothed[: lowest + 1]), pairwise(lrs[: lowest + 1]), strict=True
        )
    ]
    return 1 + falls.index(max(falls))
