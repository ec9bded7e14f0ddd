"""What every update of a training computes on and comes to, as one JSON line an update.

    torchrun --nproc_per_node 2 -m cifar10_accel.trace --out trace.jsonl --steps 20 --recipe cpu

The updates are made by the functions that training uses, on any number of processes. The first line
says how it was launched: device, processes, threads, precision. Then each has
step    updates done before this one
lr      the LR it is made with
indices the training images of the global batch, in order
pixels  SHA-256 of that batch as the net sees it, float32 in NCHW order
loss    mean over the global batch
gradient_norm  2-norm of the whole gradient as the optimizer meets it: reduced over ranks, unscaled,
        clipped; null where fp16 skipped the update
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from accelerate.utils import gather

from cifar10_accel.data.batches import Batch, BatchPlan, training_batches
from cifar10_accel.data.cifar10 import available
from cifar10_accel.data.shared import load_shared
from cifar10_accel.engine import train_step
from cifar10_accel.errors import SettingsError
from cifar10_accel.flags import WIDE, exits_with_one_line, settings_flags
from cifar10_accel.interrupt import die_with_launcher
from cifar10_accel.launch import launched_as, make_accelerator, on_main, training_dtype, without_auto
from cifar10_accel.settings import Settings
from cifar10_accel.train import one_cycle
from cifar10_accel.training_state import TrainingState, build_state


def trace(settings: Settings, *, num_steps: int) -> Iterator[dict[str, Any]]:
    """Makes the first updates of the run that the settings describe; yields how it was launched, then a line for each.

    All ranks must go through it together; all get the same. Fewer than `num_steps` if the run is shorter.
    """
    accelerator = make_accelerator(settings)
    yield launched_as(accelerator)
    settings = without_auto(settings, on_cpu=accelerator.device.type == "cpu")
    found = available(settings)
    settings = settings.model_copy(update={"dataset": on_main(accelerator, lambda: found)})
    dataset = load_shared(accelerator, settings)
    plan = BatchPlan.of(settings, accelerator, num_images=len(dataset.train))
    state = build_state(settings, accelerator, dataset)
    norms = _GradientNorms(state)
    schedule = one_cycle(settings, steps_per_epoch=plan.steps_per_epoch)
    stop_step = min(num_steps, schedule.total_steps)
    for batches in training_batches(
        dataset.train, plan, settings, start_step=0, stop_step=stop_step,
        device=accelerator.device, dtype=training_dtype(accelerator),
    ):  # fmt: skip
        lr = schedule.lr_at(state.step)
        line = {"step": state.step, "lr": lr, **_seen(batches)}
        line["loss"] = _update(state, batches, lr, settings)
        line["gradient_norm"] = norms.take()
        yield line
        state.step += 1


@click.command(context_settings=WIDE)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file for the lines")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="updates")
@settings_flags
@exits_with_one_line
def main(out: Path, steps: int, **flags: Any) -> None:
    """Record the first updates of a training; every flag is a setting."""
    settings = Settings(**flags)
    die_with_launcher()
    lines = list(trace(settings, num_steps=steps))
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    try:
        out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise SettingsError(f"out: {out} cannot be written ({error.strerror}); give another --out") from None


class _GradientNorms:
    """Notes the norm of the gradient each time the optimizer is about to use it."""

    def __init__(self, state: TrainingState) -> None:
        self._parameters = list(state.net.parameters())
        self._norm: float | None = None
        optimizer = getattr(state.optimizer, "optimizer", state.optimizer)  # wrapped if there is a loss scale
        optimizer.register_step_pre_hook(self._note)

    def take(self) -> float | None:
        """The norm of the update just made; None if it was skipped."""
        norm, self._norm = self._norm, None
        return norm

    def _note(self, *_: Any) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._norm = float(torch.nn.utils.get_total_norm(gradients))


def _update(state: TrainingState, batches: list[Batch], lr: float, settings: Settings) -> float:
    """One update as in training; returns the mean loss of the global batch."""
    accelerator = state.accelerator
    state.seed_update(settings.seed)
    totals = train_step(
        accelerator, state.model, state.optimizer, batches, lr=lr, settings=settings, average=state.average
    )
    loss, _, num_images = accelerator.reduce(totals).tolist()
    return float(loss / num_images)


def _seen(batches: list[Batch]) -> dict[str, Any]:
    """The global batch: ranks in order within each accumulation step, as the plan shares it out."""
    indices = torch.cat([gather(part.indices) for part in batches])
    pixels = torch.cat([gather(part.images.contiguous()) for part in batches]).float().cpu().numpy()
    return {"indices": indices.tolist(), "pixels": hashlib.sha256(pixels.tobytes()).hexdigest()}


if __name__ == "__main__":
    main()
