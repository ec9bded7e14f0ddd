"""Inputs (indices, pixel hash) and outputs (loss, gradient norm) of the first steps, one JSON line per step.

    torchrun --nproc_per_node 2 -m cifar10_accel step-log --out steps.jsonl --steps 20 --recipe cpu

The steps are taken by the functions that training uses, on any number of processes. The first line has the launch:
device, processes, threads, precision. Then each line has

step            steps done before this one
lr              the LR it is taken with
indices         the training images of the global batch, in order
pixels          SHA-256 of that batch as the model gets it, float32 in NCHW order
loss            mean over the global batch
gradient_norm   2-norm of the whole gradient as the optimizer gets it: reduced over ranks, unscaled, clipped; null where
                fp16 skipped the step
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather

from cifar10_accel.data.loader import Batch
from cifar10_accel.files import output_of
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import launch_info
from cifar10_accel.training.optimization.lr_schedule import make_schedule
from cifar10_accel.training.setup import set_up_run
from cifar10_accel.training.state import TrainingState, build_state
from cifar10_accel.training.step import train_step


def log_steps(settings: Settings, *, num_steps: int) -> Iterator[dict[str, Any]]:
    """Take the first steps of the run; yield the launch, then a line for each step. All ranks must call this.

    All ranks get the same lines; fewer than `num_steps` if the run is shorter.
    """
    setup = set_up_run(settings)
    yield launch_info(setup.accelerator)
    state = build_state(setup)
    norms = _GradientNorms(state)
    schedule = make_schedule(setup.settings, steps_per_epoch=setup.plan.steps_per_epoch)
    for batches in setup.loader.batches(0, min(num_steps, schedule.total_steps)):
        lr = schedule.lr_at(state.step)
        line = {"step": state.step, "lr": lr, **_inputs(batches)}
        loss, _, num_images = setup.accelerator.reduce(train_step(state, batches, lr=lr)).tolist()
        yield line | {"loss": loss / num_images, "gradient_norm": norms.take()}


def write_step_log(settings: Settings, *, num_steps: int, path: Path) -> None:
    """Write the lines of `log_steps` to a file, on rank 0. All ranks must call this.

    Raises:
        SettingsError: The file cannot be written.
    """
    lines = list(log_steps(settings, num_steps=num_steps))
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    with output_of("out", path):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class _GradientNorms:
    """Records the norm of the gradient whenever the optimizer is about to use it."""

    def __init__(self, state: TrainingState) -> None:
        self._parameters = list(state.model.parameters())
        self._norm: float | None = None
        optimizer = getattr(state.optimizer, "optimizer", state.optimizer)  # wrapped if there is a loss scale
        optimizer.register_step_pre_hook(self._record)

    def take(self) -> float | None:
        """Return the norm of the step just taken; None if it was skipped."""
        norm, self._norm = self._norm, None
        return norm

    def _record(self, *_: Any) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._norm = float(torch.nn.utils.get_total_norm(gradients))


def _inputs(batches: list[Batch]) -> dict[str, Any]:
    """Return indices and pixel hash of the global batch: the ranks in order within each micro-batch."""
    indices = torch.cat([gather(part.indices) for part in batches])
    pixels = torch.cat([gather(part.images.contiguous()) for part in batches]).float().cpu().numpy()
    return {"indices": indices.tolist(), "pixels": hashlib.sha256(pixels.tobytes()).hexdigest()}
