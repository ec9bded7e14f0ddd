"""One optimizer step.

Legend: B images per micro-batch, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from cifar10_accel.data.loader import Batch
from cifar10_accel.errors import NonFiniteError, UserError
from cifar10_accel.randomness import seed_for
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.training.optimization.optimizer import set_lr
from cifar10_accel.training.state import TrainingState

LOWER_LR = "lower --max-lr or raise --div-factor"


def train_step(state: TrainingState, batches: list[Batch], *, lr: float) -> Tensor:
    """Take one optimizer step on this rank's micro-batches and count it in the state. All ranks must call this.

    On a CPU, where reading a value costs nothing, a non-finite loss or gradient on any rank stops all ranks before the
    optimizer's step. On a GPU, MetricsLogger checks the loss every `log_every` steps, to avoid a synchronisation.

    Returns:
        This rank's sum of losses, number of correct predictions and number of images: (3,) float, on the device.

    Raises:
        NonFiniteError: On a CPU, the loss or a gradient is not finite.
    """
    seed_layers(state)
    set_lr(state.optimizer, lr)
    if state.cuda_graphs is None:
        totals = _compute_step(state, batches)
    else:
        totals = state.cuda_graphs.take_step(partial(_compute_step, state), batches)
    if state.average is not None:
        state.average.n_averaged += 1
    state.metrics_since_log += totals
    state.step += 1
    return totals


def _compute_step(state: TrainingState, batches: list[Batch]) -> Tensor:
    """Do what the device does in a step; it must not depend on Python values that change from step to step."""
    accelerator, settings = state.accelerator, state.settings
    totals = torch.zeros(3, device=accelerator.device)
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)  # only then are gradients averaged over ranks
        with nullcontext() if is_last else accelerator.no_sync(state.wrapped_model):
            loss, batch_totals = forward(state, state.wrapped_model, batch)
            accelerator.backward(loss / len(batches))
            totals += batch_totals
    if accelerator.device.type == "cpu":
        require_finite(accelerator.reduce(totals), "the loss", remedy=_remedy(state))
        gradients = [p.grad for p in state.wrapped_model.parameters() if p.grad is not None]
        require_finite(get_total_norm(gradients), "the gradient", remedy=_remedy(state))
    if settings.grad_clip is not None:
        accelerator.clip_grad_norm_(state.wrapped_model.parameters(), settings.grad_clip)
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return totals


def forward(state: TrainingState, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute the loss of one micro-batch, and record the loss and prediction of each image.

    Args:
        state: Its recorder gets them, if it has one.
        model: The state's model, or its wrapped model, whose gradients are averaged over ranks.
        batch: B images.

    Returns:
        The mean loss, a scalar with a graph for its gradient; and (3,) as `train_step` does.
    """
    logits = model(batch.images).float()  # (B, K)
    loss = state.loss(logits, batch.labels)
    if batch.weight < 1:  # MixUp or CutMix
        partner_loss = state.loss(logits, batch.partner_labels)
        loss = batch.weight * loss + (1 - batch.weight) * partner_loss
    predictions = logits.detach().argmax(dim=1)
    if state.recorder is not None:
        state.recorder.record(batch.indices, batch.labels, logits.detach(), predictions)
    num_images = loss.new_full((), len(batch.labels))
    num_correct = (predictions == batch.labels).sum().float()
    return loss, torch.stack([loss.detach() * num_images, num_correct, num_images])


def seed_layers(state: TrainingState) -> None:
    """Make the random numbers that layers draw in the next step a function of (seed, step, rank)."""
    key = seed_for(state.settings.seed, "update", state.step, state.accelerator.process_index) >> 1
    # Not torch.manual_seed: without a GPU it would record a call for every device type, in every step.
    torch.default_generator.manual_seed(key)
    if state.accelerator.device.type != "cpu":
        torch.get_device_module(state.accelerator.device).manual_seed(key)


def require_finite(values: Tensor, what: str, *, remedy: str = LOWER_LR) -> None:
    """Raise `NonFiniteError` unless every value is finite; on all ranks if the values are the same there."""
    if not torch.isfinite(values).all():
        raise NonFiniteError(f"{what} is not finite (nothing broken was saved); {remedy}")


def _remedy(state: TrainingState) -> str:
    """Return what to do about a loss or gradient that is not finite; before the first step the LR plays no part."""
    if state.step > 0:
        return LOWER_LR
    settings = state.settings
    flags = ["--precision no"] * (settings.precision != "no") + ["--no-compile"] * settings.compile
    attempt = f"try {' and '.join(flags)}, and " if flags else ""
    return f"no step was taken before, so it is not the LR: {attempt}check data, initial weights, model and loss"


@contextmanager
def explain_non_finite(state: TrainingState, batches: list[Batch], folder: RunFolder, *, lr: float) -> Iterator[None]:
    """Context that adds step, LR and images to a `NonFiniteError`, and writes them to nonfinite.json."""
    try:
        yield
    except NonFiniteError as error:
        step = state.step + 1
        images = state.accelerator.gather(torch.cat([batch.indices for batch in batches])).tolist()
        if state.accelerator.is_main_process:
            with suppress(UserError):  # a full disk is not what the user has to hear about now
                folder.write_json("nonfinite.json", {"step": step, "lr": lr, "images": images})
        shown = ", ".join(map(str, images[:5]))
        raise NonFiniteError(
            f"step {step}, lr {lr:g}: {error}; its {len(images)} images ({shown}, ...) "
            f"are in {folder.path / 'nonfinite.json'}"
        ) from None
