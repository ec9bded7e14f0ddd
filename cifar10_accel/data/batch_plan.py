"""Assignment of training images to steps, processes and accumulation steps.

The order of an epoch is a function of (seed, epoch). The images of any step are therefore known without iterating over
the steps before it, and any number of processes and accumulation steps shares the same global batch.

Legend: N images, B images per micro-batch (the images that one process computes on at once).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator

from cifar10_accel.errors import SettingsError
from cifar10_accel.randomness import draws, keys_for, seed_for
from cifar10_accel.settings import Settings

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Indices and size of the training images that one rank processes in each step.

    Raises:
        SettingsError: The global batch cannot be divided evenly, or is larger than the training set.
    """

    num_images: int
    batch_size: int  # global: over all processes and accumulation steps
    grad_accum_steps: int
    num_processes: int
    rank: int
    seed: int
    low_res_epochs: int = 0  # number of epochs, from the first on, with images scaled down
    low_res_size: int = 0  # height and width of the images in those epochs

    @classmethod
    def of(cls, settings: Settings, accelerator: Accelerator, num_images: int) -> "BatchPlan":
        """Return the plan of this process."""
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
    def micro_batch_size(self) -> int:
        """Number of images that a process computes on at once: its share of one accumulation step."""
        return self.batch_size // (self.num_processes * self.grad_accum_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; images that do not fill a batch are left out of this epoch."""
        return self.num_images // self.batch_size

    def epoch_of(self, step: int) -> int:
        """Return the epoch, counted from 0, that `step` belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[Indices]:
        """Return this rank's image indices in `step`: one (B,) int64 array per accumulation step."""
        order = epoch_order(self.seed, self.epoch_of(step), self.num_images)
        start = step % self.steps_per_epoch * self.batch_size
        parts = order[start : start + self.batch_size].reshape(self.grad_accum_steps, self.num_processes, -1)
        return list(parts[:, self.rank])

    def with_smaller_micro_batches(self) -> "BatchPlan | None":
        """Return the plan with micro-batches of half the size, or the next smaller size that divides evenly.

        Returns:
            The plan for the same global batches, or None if the micro-batches already hold one image each.
        """
        per_rank = self.batch_size // self.num_processes
        if self.grad_accum_steps == per_rank:
            return None
        doubled = min(2 * self.grad_accum_steps, per_rank)
        count = next(count for count in range(doubled, per_rank + 1) if per_rank % count == 0)
        return replace(self, grad_accum_steps=count)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> Indices:
    """Return the permutation of an epoch: (num_images,) int64, images sorted by a hash of (seed, epoch, image)."""
    keys = keys_for(seed_for(seed, "order", epoch), np.arange(num_images, dtype=np.int64))
    order: Indices = np.argsort(draws(keys, 0) << 31 ^ draws(keys, 1), kind="stable")
    order.flags.writeable = False
    return order
