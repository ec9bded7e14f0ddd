"""Batches of training images on the device, from any step on.

The augmentation of an image is a function of (seed, epoch, index). The batch of any step can therefore be made without
those before it, and the images and their pixels are the same for any number of processes, workers and accumulation
steps.

Legend: N images, B images per micro-batch (the images that one process computes on at once).
"""

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cifar10_accel.data.augment.batched import BatchedPipeline, NotLowerable, lower
from cifar10_accel.data.augment.pipeline import AugmentedImages, Pipeline, image_keys, training_pipeline
from cifar10_accel.data.batch_plan import BatchPlan
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.device_cache import cached_images, to_device
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.data.mixup import mix
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import DataSettings

IMAGES_PER_GROUP = 16_384  # augmented in one call on a GPU

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Micro-batch: the images that one process computes on in one accumulation step."""

    images: Tensor  # (B, C, H, W) normalised, training dtype, channels_last; smaller in low-resolution epochs
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, positions in the training set
    partner_labels: Tensor  # (B,) int64, of the images mixed in (MixUp, CutMix); equal to labels otherwise
    weight: float  # weight of the labels in the loss; partner_labels have 1 - weight


class TrainingLoader:
    """Loader of this rank's training batches, from any step on.

    Args:
        dataset: Its training images are loaded.
        plan: Assignment of the images to steps.
        settings: Augmentation and its backend, MixUp, CutMix, number of workers.
        device: Device of the batches.
        dtype: Data type of the images.

    Raises:
        SettingsError: `augment_backend` is "batched" and a transform has no batched form.
    """

    def __init__(
        self, dataset: Dataset, plan: BatchPlan, settings: DataSettings, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.split, self.plan, self.settings = dataset.train, plan, settings
        self.device, self.dtype = device, dtype
        image_format, num_classes = dataset.image_format, len(dataset.class_names)
        self._image_format = image_format
        self.pipeline = training_pipeline(settings, image_format, num_classes=num_classes)
        self.batched_pipeline = lower_if_possible(self.pipeline, settings, image_format)

    @property
    def uses_workers(self) -> bool:
        """True if worker processes make the batches while the model computes."""
        return self.batched_pipeline is None and self.settings.num_workers > 0

    @property
    def steps_per_group(self) -> int:
        """Number of steps whose images are augmented in one call.

        On a CPU one, whose images fit into the caches. On a GPU several, because the cost of launching the kernels does
        not depend on the number of images: up to 16,384 images of this rank, 200 MB in float32; fewer if they are above
        32 pixels a side.
        """
        if self.device.type == "cpu":
            return 1
        num_images = self._image_format.num_in_equal_memory(IMAGES_PER_GROUP)
        return max(1, num_images // (self.plan.batch_size // self.plan.num_processes))

    def batches(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step in start_step .. stop_step - 1, one per accumulation step."""
        if self.batched_pipeline is None:
            return self._augmented_in_workers(start_step, stop_step)
        return self._augmented_on_device(self.batched_pipeline, start_step, stop_step)

    def _augmented_on_device(self, pipeline: BatchedPipeline, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """Augment whole batches; nothing waits for the device, so the host runs ahead and needs no prefetching."""
        plan, images = self.plan, cached_images(self.split, self.device)
        labels = torch.from_numpy(self.split.labels).to(self.device)
        for steps in _augmentation_groups(plan, start_step, stop_step, self.steps_per_group):
            chosen = torch.from_numpy(np.concatenate([part for step in steps for part in plan.indices(step)]))
            indices = to_device(chosen, self.device)
            keys = image_keys(plan.seed, plan.epoch_of(steps[0]), indices)
            augmented = pipeline(images.take(chosen), keys, dtype=self.dtype)
            split = partial(torch.split, split_size_or_sections=plan.micro_batch_size)
            micro_batches = zip(split(augmented), split(labels[indices]), split(indices), strict=True)
            for step in steps:
                yield [self._finish(step, *next(micro_batches)) for _ in range(plan.grad_accum_steps)]

    def _augmented_in_workers(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        split = self.split
        loader = DataLoader(
            AugmentedImages(split.images, split.labels, pipeline=self.pipeline, seed=self.plan.seed),
            batch_sampler=_PlannedBatches(self.plan, start_step, stop_step),
            num_workers=self.settings.num_workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_stop_signals,
        )
        micro_batches = iter(loader)
        atexit.register(_kill_workers)
        for step in range(start_step, stop_step):
            batches = []
            for _ in range(self.plan.grad_accum_steps):
                images, labels, indices = (part.to(self.device, non_blocking=True) for part in next(micro_batches))
                images = images.to(self.dtype, memory_format=torch.channels_last)
                batches.append(self._finish(step, images, labels, indices))
            yield batches

    def _finish(self, step: int, images: Tensor, labels: Tensor, indices: Tensor) -> Batch:
        """Apply the operations on whole micro-batches: MixUp or CutMix, and low resolution."""
        settings, plan = self.settings, self.plan
        mixed = mix(
            images,
            labels,
            mixup_alpha=settings.mixup_alpha,
            cutmix_alpha=settings.cutmix_alpha,
            seed=plan.seed,
            step=step,
        )
        is_low_res = plan.epoch_of(step) < plan.low_res_epochs
        resized = scaled_down(mixed.images, plan.low_res_size) if is_low_res else mixed.images
        return Batch(resized, mixed.labels, indices, mixed.partner_labels, mixed.weight)


def lower_if_possible(pipeline: Pipeline, settings: DataSettings, image_format: ImageFormat) -> BatchedPipeline | None:
    """Return a pipeline in its batched form, or None if Albumentations is to run on one image at a time.

    Raises:
        SettingsError: `augment_backend` is "batched" and a transform has no batched form.
    """
    if settings.augment_backend == "albumentations":
        return None
    try:
        return lower(pipeline, image_format)
    except NotLowerable as error:
        if settings.augment_backend == "batched":
            raise SettingsError(f"augment_backend: {error}; give --augment-backend albumentations") from None
        _log_once(f"augmentation: {error}; Albumentations augments single images in {settings.num_workers} workers")
        return None


@cache
def _log_once(message: str) -> None:
    logger.info(message)


def _augmentation_groups(plan: BatchPlan, start_step: int, stop_step: int, size: int) -> Iterator[range]:
    """Yield groups of up to `size` steps of one epoch, whose images are augmented in one call."""
    for epoch in range(plan.epoch_of(start_step), plan.epoch_of(stop_step - 1) + 1):
        first = max(start_step, epoch * plan.steps_per_epoch)
        last = min(stop_step, (epoch + 1) * plan.steps_per_epoch)
        for step in range(first, last, size):
            yield range(step, min(step + size, last))


def scaled_down(images: Tensor, size: int) -> Tensor:
    """Resize images by anti-aliased bilinear interpolation, for cheaper epochs (progressive resizing).

    Sources: Howard et al. 2018 (DAWNBench); Touvron et al. 2019, https://arxiv.org/abs/1906.06423, on why the last
    epochs should have the resolution of the test images.

    Args:
        images: (B, C, H, W) floats.
        size: New height and width in pixels.

    Returns:
        (B, C, size, size), channels_last.
    """
    source = images.float() if images.device.type == "cpu" else images  # on CPUs there is no half-precision kernel
    smaller = F.interpolate(source, size=(size, size), mode="bilinear", antialias=True)
    return smaller.to(images.dtype).contiguous(memory_format=torch.channels_last)


def _kill_workers() -> None:
    """Kill remaining workers at exit; Python would send SIGTERM, which they ignore, and wait without a time limit."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for worker in multiprocessing.active_children():
        worker.kill()


def _ignore_stop_signals(worker: int) -> None:
    """Ignore signals to the process group in a worker; only the training loop handles them, between two steps."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _PlannedBatches(Sampler[list[tuple[int, int]]]):
    """Sampler of (epoch, index) lists, one per accumulation step; covers all epochs, so workers are started once."""

    def __init__(self, plan: BatchPlan, start_step: int, stop_step: int) -> None:
        self._plan, self._steps = plan, range(start_step, stop_step)

    def __len__(self) -> int:
        return len(self._steps) * self._plan.grad_accum_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            epoch = self._plan.epoch_of(step)
            for part in self._plan.indices(step):
                yield [(epoch, int(index)) for index in part]
