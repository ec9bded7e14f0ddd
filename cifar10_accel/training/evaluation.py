"""Exact evaluation: every image of a split once, on any number of processes, plain and with test-time augmentation.

Legend: N images, B images per batch, K classes.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from rich.table import Table
from torch import Tensor, nn

from cifar10_accel.data.augment.batched import normalize
from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.data.device_cache import cached_images
from cifar10_accel.data.image_format import CIFAR10_IMAGES, ImageFormat
from cifar10_accel.formatting import dataset_title
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.settings import RunSettings
from cifar10_accel.training.accelerator import training_dtype

# The views of a test image: weight, vertical and horizontal shift in pixels, whether it is flipped. The views with the
# shifts at half weight are the multi-crop evaluation of cifar10-airbench.
VIEWS: dict[str, list[tuple[float, int, int, bool]]] = {
    "none": [(1.0, 0, 0, False)],
    "flip": [(0.5, 0, 0, False), (0.5, 0, 0, True)],
    "multicrop": [
        (0.25, 0, 0, False),
        (0.25, 0, 0, True),
        (0.125, -1, -1, False),
        (0.125, -1, -1, True),
        (0.125, 1, 1, False),
        (0.125, 1, 1, True),
    ],
}
# With `multicrop_uncertain` only this share of the images gets the views: those with the smallest difference of their
# two largest logits. The others keep their plain logits (as in Hiverge's CIFAR-10 speed run).
UNCERTAIN_SHARE = 0.25
MAX_ROWS = 20  # of a table of classes on the terminal; report.html has all


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Predictions on the test set, plain and with TTA, and on the hold-out, if there is one."""

    test: Predictions
    test_tta: Predictions | None
    val: Predictions | None
    val_tta: Predictions | None
    class_names: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """Return the final metrics by name; accuracies are in 0..1."""
        metrics = {"test/accuracy": self.test.accuracy(), "test/loss": self.test.mean_loss()}
        if self.test_tta is not None:
            metrics["test/accuracy_tta"] = self.test_tta.accuracy()
        if self.val is not None:
            metrics |= {"val/accuracy": self.val.accuracy(), "val/loss": self.val.mean_loss()}
        if self.val_tta is not None:
            metrics["val/accuracy_tta"] = self.val_tta.accuracy()
        for name, accuracy in zip(self.class_names, self.test.class_accuracy(), strict=True):
            if not math.isnan(accuracy):  # an image folder may have classes without test images
                metrics[f"test/class_accuracy/{name}"] = float(accuracy)
        return metrics

    def table(self, title: str) -> Table:
        """Return a terminal table of the accuracy and the most frequent confusion of each class.

        With more than MAX_ROWS classes it has those with the lowest accuracy, the lowest first.
        """
        table = Table("class", "accuracy", "most often taken for", title=title, title_justify="left")
        confusion, accuracy = self.test.confusion_matrix(), self.test.class_accuracy()
        rows = np.arange(len(accuracy))
        if len(rows) > MAX_ROWS:
            rows = accuracy.argsort(kind="stable")[:MAX_ROWS]  # classes without test images, nan, are last
            table.caption = f"the {MAX_ROWS} of {len(accuracy)} classes with the lowest accuracy"
        for row in rows.tolist():
            others = confusion[row].copy()
            others[row] = 0
            other = int(others.argmax())
            confused = f"{self.class_names[other]} ({others[other]})" if others[other] else "-"
            share = "-" if math.isnan(accuracy[row]) else f"{accuracy[row]:.2%}"
            table.add_row(self.class_names[row], share, confused)
        return table

    def headline(self, dataset_name: str) -> str:
        """Return the test accuracy, plain and with TTA, as text."""
        tta = "" if self.test_tta is None else f", with TTA {self.test_tta.accuracy():.2%}"
        num_images = len(self.test.label)
        return f"test accuracy {self.test.accuracy():.2%}{tta} ({num_images:,} {dataset_title(dataset_name)} images)"


def evaluate_dataset(accelerator: Accelerator, model: nn.Module, dataset: Dataset, settings: RunSettings) -> Evaluation:
    """Evaluate on the test set and the hold-out. All ranks must call this; all get the same result."""

    def evaluate(split: Split) -> tuple[Predictions, Predictions | None]:
        return evaluate_split(
            accelerator,
            model,
            split,
            image_format=dataset.image_format,
            batch_size=settings.eval_batch_size,
            tta=settings.tta,
        )

    test, test_tta = evaluate(dataset.test)
    val, val_tta = (None, None) if dataset.val is None else evaluate(dataset.val)
    return Evaluation(test=test, test_tta=test_tta, val=val, val_tta=val_tta, class_names=dataset.class_names)


@torch.inference_mode()
def evaluate_split(
    accelerator: Accelerator,
    model: nn.Module,
    split: Split,
    *,
    batch_size: int,
    tta: str = "none",
    image_format: ImageFormat = CIFAR10_IMAGES,
) -> tuple[Predictions, Predictions | None]:
    """Predict every image of a split exactly once. All ranks must call this; all get the same result.

    Each rank computes every num_processes-th image, so no image is repeated or dropped for any number of ranks.

    Args:
        accelerator: Of this process.
        model: Plain or wrapped; in training mode again afterwards.
        split: Images and labels.
        batch_size: Images per forward pass; fewer if they are larger than 32 pixels a side.
        tta: Key of VIEWS, or `multicrop_uncertain`.
        image_format: Normalisation of the images.

    Returns:
        Predictions sorted by index: plain ones and, unless `tta` is `none`, those of the weighted mean over the views,
        whose probabilities the plain ones have, too.
    """
    model = accelerator.unwrap_model(model).eval()  # DDP's collectives would hang on unequal numbers of batches
    if accelerator.num_processes > 1:
        # Each rank has seen other images; the norm statistics of rank 0 are those in checkpoints.
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
    images, labels = cached_images(split, accelerator.device), torch.from_numpy(split.labels).to(accelerator.device)
    dtype = training_dtype(accelerator)
    batch_size = image_format.num_in_equal_memory(batch_size)

    def mean_logits(indices: Tensor, tta: str) -> list[Tensor]:
        """Return plain logits and the mean over the views of the images with these indices; each rank does its part."""
        own = indices[accelerator.process_index :: accelerator.num_processes]
        batches = (normalize(images.take(part), dtype, image_format) for part in torch.split(own, batch_size))
        with accelerator.autocast():
            logits = [_view_logits(model, batch, tta) for batch in batches]
        return [_gather_rows(accelerator, torch.cat(rows), len(indices)) for rows in zip(*logits, strict=True)]

    is_partial = tta == "multicrop_uncertain"
    plain, averaged = mean_logits(torch.arange(len(labels)), "none" if is_partial else tta)
    if is_partial:
        uncertain = _least_certain(plain)
        averaged = plain.index_copy(0, uncertain, mean_logits(uncertain.cpu(), "multicrop")[1])
    model.train()
    predictions = _predictions(plain, labels)
    if tta == "none":
        return predictions, None
    with_tta = _predictions(averaged, labels)
    return replace(predictions, probabilities_tta=with_tta.probabilities), with_tta


def _least_certain(logits: Tensor) -> Tensor:
    """Return the indices of the UNCERTAIN_SHARE of (N, K) logits with the least difference of the two largest ones."""
    best = logits.topk(min(2, logits.shape[1]), dim=1).values  # one if there is only one class
    return (best[:, 0] - best[:, -1]).argsort(stable=True)[: math.ceil(UNCERTAIN_SHARE * len(logits))]


def _view_logits(model: nn.Module, inputs: Tensor, tta: str) -> tuple[Tensor, Tensor]:
    """Return plain logits and the weighted mean over the views, both (B, K), of normalised images (B, C, H, W)."""
    plain: Tensor = model(inputs).float()
    averaged = torch.zeros_like(plain)
    for weight, down, right, flipped in VIEWS[tta]:
        is_plain = (down, right, flipped) == (0, 0, False)
        averaged += weight * (plain if is_plain else model(_view(inputs, down, right, flipped)).float())
    return plain, averaged


def _view(inputs: Tensor, down: int, right: int, flipped: bool) -> Tensor:
    """Return images shifted by up to one pixel (with reflected borders), then flipped horizontally if wanted."""
    padded = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
    height, width = inputs.shape[-2:]
    shifted = padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return (shifted.flip(-1) if flipped else shifted).contiguous(memory_format=torch.channels_last)


def _gather_rows(accelerator: Accelerator, own_rows: Tensor, num_images: int) -> Tensor:
    """Interleave the rows of all ranks: (N, K), row i belongs to image i."""
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
