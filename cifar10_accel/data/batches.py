"""Which images are in which update, and the updates' batches from any step on.

The order of an epoch is a function of (seed, epoch), the augmentation of an image one of (seed,
epoch, index). So a batch can be made for any step without having made the ones before, and any
number of processes, workers and accumulation steps sees the same images with the same pixels.

Legend: N images, B images per process and accumulation step.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cifar10_accel.data.augment import IMAGE_SIZE, AugmentedImages, image_keys, training_pipeline
from cifar10_accel.data.batched import NotLowerable, lower
from cifar10_accel.data.cifar10 import Split
from cifar10_accel.data.mixing import mix
from cifar10_accel.data.resident import resident_images, to_device
from cifar10_accel.errors import SettingsError
from cifar10_accel.randomness import draws, keys_for, seed_for
from cifar10_accel.settings import DataSettings, Settings

Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """What one process computes on between two optimizer updates (or one accumulation step of it)."""

    images: Tensor  # (B, 3, H, W) normalised, in the training dtype, channels_last; 32x32 but in low-resolution epochs
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, positions in the training set
    partner_labels: Tensor  # (B,) int64, of the images mixed in; the labels again if none are
    weight: float  # the labels' share of the loss; the partners have the rest


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which training images this rank sees in each update, and their size.

    `SettingsError` unless all ranks get the same share.
    """

    num_images: int
    batch_size: int  # global: over all processes and accumulation steps
    grad_accum_steps: int
    num_processes: int
    rank: int
    seed: int
    low_res_epochs: int = 0  # the first, whose images are scaled down
    low_res_size: int = IMAGE_SIZE

    @classmethod
    def of(cls, settings: Settings, accelerator: Accelerator, *, num_images: int) -> "BatchPlan":
        """The plan of this process."""
        return cls(
            num_images=num_images,
            batch_size=settings.batch_size,
            grad_accum_steps=settings.grad_accum_steps,
            num_processes=accelerator.num_processes,
            rank=accelerator.process_index,
            seed=settings.seed,
            low_res_epochs=settings.low_res_epochs,
            low_res_size=settings.low_res_size,
        )

    def __post_init__(self) -> None:
        if self.batch_size > self.num_images:
            raise SettingsError(
                f"batch_size: {self.batch_size} is more than the {self.num_images} training images; give at most that"
            )
        parts = self.num_processes * self.grad_accum_steps
        if self.batch_size % parts:
            low = self.batch_size // parts * parts
            raise SettingsError(
                f"batch_size: {self.batch_size} cannot be shared by {self.num_processes} processes x "
                f"{self.grad_accum_steps} accumulation steps; give {f'{low} or ' if low else ''}{low + parts}"
            )

    @property
    def piece_size(self) -> int:
        """Images that a process computes on at once: its share of one accumulation step."""
        return self.batch_size // (self.num_processes * self.grad_accum_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch; images that do not fill a batch wait for the next epoch's order."""
        return self.num_images // self.batch_size

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that update `step` belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[Indices]:
        """This rank's images in update `step`: (B,) int64 for each accumulation step."""
        order = epoch_order(self.seed, self.epoch_of(step), self.num_images)
        start = step % self.steps_per_epoch * self.batch_size
        parts = order[start : start + self.batch_size].reshape(self.grad_accum_steps, self.num_processes, -1)
        return list(parts[:, self.rank])

    def finer(self) -> "BatchPlan | None":
        """The plan with pieces of half the size, or the next smaller that shares evenly; None below one image."""
        per_rank = self.batch_size // self.num_processes
        if self.grad_accum_steps == per_rank:
            return None
        doubled = min(2 * self.grad_accum_steps, per_rank)
        count = next(count for count in range(doubled, per_rank + 1) if per_rank % count == 0)
        return replace(self, grad_accum_steps=count)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> Indices:
    """The permutation of an epoch: (num_images,) int64, images sorted by a hash of (seed, epoch, image)."""
    keys = keys_for(seed_for(seed, "order", epoch), np.arange(num_images, dtype=np.int64))
    order: Indices = np.argsort(draws(keys, 0) << 31 ^ draws(keys, 1), kind="stable")
    order.flags.writeable = False
    return order


def choose_backend(settings: DataSettings) -> str:
    """'batched' or 'albumentations'; `SettingsError` if batched was asked for and cannot be."""
    if settings.augment_backend == "albumentations":
        return "albumentations"
    try:
        lower(training_pipeline(settings))
    except NotLowerable as error:
        if settings.augment_backend == "batched":
            raise SettingsError(f"augment_backend: {error}; give --augment-backend albumentations") from None
        print(f"augmentation: {error}, so Albumentations runs image by image in {settings.num_workers} workers")
        return "albumentations"
    return "batched"


def training_batches(
    split: Split, plan: BatchPlan, settings: DataSettings, *,
    start_step: int, stop_step: int, device: torch.device, dtype: torch.dtype,
) -> Iterator[list[Batch]]:  # fmt: skip
    """For each update from `start_step` to `stop_step - 1`, this rank's batches, one per accumulation step."""
    if choose_backend(settings) == "batched":
        return _augmented_on_device(split, plan, settings, start_step, stop_step, device, dtype)
    return _augmented_in_workers(split, plan, settings, start_step, stop_step, device, dtype)


def _augmented_on_device(
    split: Split, plan: BatchPlan, settings: DataSettings,
    start_step: int, stop_step: int, device: torch.device, dtype: torch.dtype,
) -> Iterator[list[Batch]]:  # fmt: skip
    """Nothing here waits for the device, so the host is many updates ahead: all the prefetching there has to be."""
    images, labels = resident_images(split, device), torch.from_numpy(split.labels).to(device)
    augment = lower(training_pipeline(settings))
    for steps in _augmented_together(plan, start_step, stop_step, device):
        chosen = torch.from_numpy(np.concatenate([part for step in steps for part in plan.indices(step)]))
        indices = to_device(chosen, device)
        keys = image_keys(plan.seed, plan.epoch_of(steps[0]), indices)
        augmented = augment(images.take(chosen), keys, dtype=dtype)
        cut = partial(torch.split, split_size_or_sections=plan.piece_size)
        pieces = zip(cut(augmented), cut(labels[indices]), cut(indices), strict=True)
        for step in steps:
            yield [_finished(*next(pieces), settings, plan, step) for _ in range(plan.grad_accum_steps)]


def _augmented_together(plan: BatchPlan, start_step: int, stop_step: int, device: torch.device) -> Iterator[range]:
    """The updates, those of one epoch, whose images are augmented in one go.

    One at a time on a CPU, for whose caches more is too much; several on a GPU, which is started as often for
    many images as for few: 4,096 images, 25 MB in half precision, at batch 512.
    """
    size = _updates_at_once(device)
    for epoch in range(plan.epoch_of(start_step), plan.epoch_of(stop_step - 1) + 1):
        first = max(start_step, epoch * plan.steps_per_epoch)
        last = min(stop_step, (epoch + 1) * plan.steps_per_epoch)
        for step in range(first, last, size):
            yield range(step, min(step + size, last))


def _updates_at_once(device: torch.device) -> int:
    return 1 if device.type == "cpu" else 8


def _augmented_in_workers(
    split: Split, plan: BatchPlan, settings: DataSettings,
    start_step: int, stop_step: int, device: torch.device, dtype: torch.dtype,
) -> Iterator[list[Batch]]:  # fmt: skip
    loader = DataLoader(
        AugmentedImages(split.images, split.labels, pipeline=training_pipeline(settings), seed=plan.seed),
        batch_sampler=_PlannedBatches(plan, start_step, stop_step),
        num_workers=settings.num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_stop_signals,
    )
    parts = iter(loader)
    atexit.register(_end_workers)
    for step in range(start_step, stop_step):
        batches = []
        for _ in range(plan.grad_accum_steps):
            images, labels, indices = (tensor.to(device, non_blocking=True) for tensor in next(parts))
            images = images.to(dtype, memory_format=torch.channels_last)
            batches.append(_finished(images, labels, indices, settings, plan, step))
        yield batches


def _finished(
    images: Tensor, labels: Tensor, indices: Tensor, settings: DataSettings, plan: BatchPlan, step: int
) -> Batch:
    """What is done to whole batches after the augmentation of each image."""
    mixed = mix(
        images, labels, mixup_alpha=settings.mixup_alpha, cutmix_alpha=settings.cutmix_alpha, seed=plan.seed, step=step
    )
    is_low_res = plan.epoch_of(step) < plan.low_res_epochs
    sized = scaled_down(mixed.images, plan.low_res_size) if is_low_res else mixed.images
    return Batch(sized, mixed.labels, indices, mixed.partner_labels, mixed.weight)


def scaled_down(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) floats as (B, 3, size, size), each pixel the mean of what it covers, weighted to its centre.

    Epochs of such images cost a net a fraction (progressive resizing: Howard et al. 2018, DAWNBench; Touvron et al.
    2019, https://arxiv.org/abs/1906.06423, on why the last epochs should have the size of the test).
    """
    smaller = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return smaller.contiguous(memory_format=torch.channels_last)


def _end_workers() -> None:
    """Kills workers that are left at exit: there Python sends SIGTERM, which they ignore, and waits without a limit."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for worker in multiprocessing.active_children():
        worker.kill()


def _ignore_stop_signals(worker: int) -> None:
    """A signal to the process group must reach the loop, which stops between updates, not its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _PlannedBatches(Sampler[list[tuple[int, int]]]):
    """One list of (epoch, index) per accumulation step, over all epochs, so workers live for the whole run."""

    def __init__(self, plan: BatchPlan, start_step: int, stop_step: int) -> None:
        self._plan, self._steps = plan, range(start_step, stop_step)

    def __len__(self) -> int:
        return len(self._steps) * self._plan.grad_accum_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            epoch = self._plan.epoch_of(step)
            for part in self._plan.indices(step):
                yield [(epoch, int(index)) for index in part]
