"""One optimizer update, and one exact pass over a split: the two things a training computes.

Legend: N images, B batch, K classes, V views of an image.
"""

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cifar10_accel.data.batched import normalize
from cifar10_accel.data.batches import Batch
from cifar10_accel.data.cifar10 import Split
from cifar10_accel.data.resident import resident_images
from cifar10_accel.errors import NonFiniteError
from cifar10_accel.optim import set_lr
from cifar10_accel.predictions import Predictions
from cifar10_accel.recorder import Recorder
from cifar10_accel.settings import OptimSettings

# Weight, vertical and horizontal shift in pixels, mirrored: each view of a test image. The shifted
# pair at half weight is the multi-crop evaluation of the cifar10-airbench speed runs.
VIEWS: dict[str, list[tuple[float, int, int, bool]]] = {
    "none": [(1.0, 0, 0, False)],
    "flip": [(0.5, 0, 0, False), (0.5, 0, 0, True)],
    "multicrop": [
        (0.25, 0, 0, False), (0.25, 0, 0, True),
        (0.125, -1, -1, False), (0.125, -1, -1, True),
        (0.125, 1, 1, False), (0.125, 1, 1, True),
    ],
}  # fmt: skip


def train_step(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, batches: list[Batch],
    *, lr: float, settings: OptimSettings, average: AveragedModel | None, recorder: Recorder | None = None,
) -> Tensor:  # fmt: skip
    """Makes one update from this rank's accumulation steps; all ranks must call this.

    Returns (3,) float: this rank's sum of losses, number of right answers, number of images, on the
    device. The recorder, if there is one, is told what the net said of each image. On a CPU, where looking
    costs nothing, a loss or gradient that is not finite, on any rank, stops all ranks before the update; on a
    GPU the journal looks, whenever it waits for the device anyway.
    """
    set_lr(optimizer, lr)
    totals = torch.zeros(3, device=accelerator.device)
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)
        with nullcontext() if is_last else accelerator.no_sync(model):
            totals += forward_backward(accelerator, model, batch, settings, num_batches=len(batches), recorder=recorder)
    if accelerator.device.type == "cpu":
        require_finite(accelerator.reduce(totals), "the loss")
        require_finite(get_total_norm([p.grad for p in model.parameters() if p.grad is not None]), "the gradient")
    if settings.grad_clip is not None:
        accelerator.clip_grad_norm_(model.parameters(), settings.grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    if average is not None:
        average.update_parameters(accelerator.unwrap_model(model))
    return totals


def forward_backward(
    accelerator: Accelerator, model: nn.Module, batch: Batch, settings: OptimSettings,
    *, num_batches: int, recorder: Recorder | None = None,
) -> Tensor:  # fmt: skip
    """Adds the gradient of one accumulation step to the parameters; returns (3,) as `train_step` does."""
    logits = model(batch.images).float()  # (B, K)
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=settings.label_smoothing)
    if batch.weight < 1:
        partner_loss = F.cross_entropy(logits, batch.partner_labels, label_smoothing=settings.label_smoothing)
        loss = batch.weight * loss + (1 - batch.weight) * partner_loss
    accelerator.backward(loss / num_batches)
    num_images = loss.new_full((), len(batch.labels))
    answers = logits.detach().argmax(dim=1)
    if recorder is not None:
        recorder.note(batch.indices, batch.labels, logits.detach(), answers)
    num_right = (answers == batch.labels).sum().float()
    return torch.stack([loss.detach() * num_images, num_right, num_images])


def require_finite(values: Tensor, what: str) -> None:
    """Raises `NonFiniteError` unless every value is finite; the same on all ranks if the values are."""
    if not torch.isfinite(values).all():
        raise NonFiniteError(f"{what} is not finite (nothing broken was saved); lower --max-lr or raise --div-factor")


@torch.inference_mode()
def evaluate_pass(
    accelerator: Accelerator, model: nn.Module, split: Split, *, batch_size: int, tta: str = "none"
) -> tuple[Predictions, Predictions | None]:
    """Predictions for every image of the split, once each, plain and (unless 'none') with TTA.

    Each rank computes every num_processes-th image, so no sample is repeated or dropped whatever the
    number of ranks. All ranks must call this; all get the same, sorted by index.
    """
    net = accelerator.unwrap_model(model).eval()  # DDP's collectives would hang on unequal numbers of batches
    _share_buffers(accelerator, net)
    images, labels = resident_images(split, accelerator.device), torch.from_numpy(split.labels).to(accelerator.device)
    own = torch.arange(accelerator.process_index, len(labels), accelerator.num_processes)
    with accelerator.autocast():
        logits = [_view_logits(net, images.take(part), tta) for part in torch.split(own, batch_size)]
    net.train()
    plain, averaged = (_gather_rows(accelerator, torch.cat(rows), len(labels)) for rows in zip(*logits, strict=True))
    return _predictions(plain, labels), _predictions(averaged, labels) if tta != "none" else None


def _share_buffers(accelerator: Accelerator, net: nn.Module) -> None:
    """Gives every rank rank 0's norm statistics, the ones that are saved: each rank has seen other images."""
    if accelerator.num_processes > 1:
        for buffer in net.buffers():
            buffer.copy_(broadcast(buffer))


def _view_logits(model: nn.Module, images: Tensor, tta: str) -> tuple[Tensor, Tensor]:
    """Plain logits and the weighted mean over the views, both (B, K), of (B, 3, 32, 32) uint8."""
    inputs = normalize(images, dtype=torch.float32)
    plain: Tensor = model(inputs).float()
    averaged = torch.zeros_like(plain)
    for weight, down, right, mirrored in VIEWS[tta]:
        is_plain = (down, right, mirrored) == (0, 0, False)
        averaged += weight * (plain if is_plain else model(_view(inputs, down, right, mirrored)).float())
    return plain, averaged


def _view(inputs: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    """The image shifted by up to one pixel (its border mirrored in), then perhaps flipped."""
    padded = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
    height, width = inputs.shape[-2:]
    shifted = padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return (shifted.flip(-1) if mirrored else shifted).contiguous(memory_format=torch.channels_last)


def _gather_rows(accelerator: Accelerator, own_rows: Tensor, num_images: int) -> Tensor:
    """Row i of the result is image i: the ranks' rows interleaved, (N, K)."""
    num_ranks = accelerator.num_processes
    if num_ranks == 1:
        return own_rows
    rows_per_rank = -(-num_images // num_ranks)
    padded = F.pad(own_rows, (0, 0, 0, rows_per_rank - len(own_rows)))
    gathered: Tensor = accelerator.gather(padded).view(num_ranks, rows_per_rank, -1)  # (ranks, rows, K)
    return gathered.transpose(0, 1).reshape(num_ranks * rows_per_rank, -1)[:num_images]


def _predictions(logits: Tensor, labels: Tensor) -> Predictions:
    return Predictions(
        index=np.arange(len(labels)),
        label=labels.cpu().numpy(),
        probabilities=logits.softmax(dim=1).cpu().numpy(),
        loss=F.cross_entropy(logits, labels, reduction="none").cpu().numpy(),
    )
