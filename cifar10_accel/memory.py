"""Running out of memory: found before the first update, mended on all ranks together.

The batch size is a promise about the mathematics, so it stays; what is halved is the piece of it that is
computed at once. Trying one piece before the loop, without a collective in it, is what lets ranks agree:
a rank that runs out in the middle of a real update leaves the others waiting for its gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from cifar10_accel.data.batches import Batch, BatchPlan, training_batches
from cifar10_accel.data.cifar10 import Split
from cifar10_accel.engine import forward_backward
from cifar10_accel.errors import OutOfResourcesError
from cifar10_accel.launch import training_dtype
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import TrainingState

# What CUDA's libraries and the CPU allocator say; torch.OutOfMemoryError covers only its own allocator.
SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


def fit_in_memory(state: TrainingState, split: Split, plan: BatchPlan, settings: Settings) -> BatchPlan:
    """The plan, with as many accumulation steps as it takes until a piece of a batch fits on every rank.

    All ranks must call this; all get the same number. The state is as before. Raises `OutOfResourcesError`
    if not even one image at a time fits.
    """
    while _any_rank(state, _runs_out(state, split, plan, settings)):
        finer = plan.finer()
        if finer is None:
            raise OutOfResourcesError("out of memory with one image at a time; lower --width or take another device")
        state.accelerator.print(
            f"out of memory: batches of {plan.batch_size} are computed in {finer.grad_accum_steps} pieces per process "
            f"from here on, not {plan.grad_accum_steps}; --grad-accum-steps {finer.grad_accum_steps} says so at once"
        )
        plan = finer
    return plan


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Context that turns running out of memory into an `OutOfResourcesError`; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "DataLoader worker" in str(error):  # the system kills these first
            raise OutOfResourcesError(
                "a loader worker was killed, as happens for want of memory; lower --num-workers or give "
                "--augment-backend batched, which has none"
            ) from error
        if not _is_out_of_memory(error):
            raise
        reason = (str(error) or "MemoryError").splitlines()[0]
        raise OutOfResourcesError(
            f"out of memory ({reason}); raise --grad-accum-steps or lower --batch-size"
        ) from error


def _first_batch(state: TrainingState, split: Split, plan: BatchPlan, settings: Settings) -> Batch:
    full_size = replace(plan, low_res_epochs=0)  # the largest images that are to come
    updates = training_batches(
        split, full_size, settings, start_step=state.step, stop_step=state.step + 1,
        device=state.accelerator.device, dtype=training_dtype(state.accelerator),
    )  # fmt: skip
    return next(updates)[0]


def _runs_out(state: TrainingState, split: Split, plan: BatchPlan, settings: Settings) -> bool:
    """Whether this rank has too little memory for the next batch. Goes past DDP, so no rank waits for another."""
    buffers = [buffer.clone() for buffer in state.net.buffers()]
    try:
        batch = _first_batch(state, split, plan, settings)
        forward_backward(state.accelerator, state.net, batch, settings, num_batches=1)
        return False
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return True
    finally:
        state.optimizer.zero_grad()
        for buffer, before in zip(state.net.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _any_rank(state: TrainingState, flag: bool) -> bool:
    if flag and torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the failed try had reserved, in pieces of the wrong size
    flags = state.accelerator.gather(torch.tensor([flag], device=state.accelerator.device))
    return bool(flags.any())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)
