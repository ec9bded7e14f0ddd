"""Out of memory: detected before the first step and avoided by smaller micro-batches, the same on all ranks.

The batch size affects the result, so it is kept and the micro-batch is made smaller. (Accelerate's
`find_executable_batch_size` changes the batch size.) One micro-batch is tried before the loop, without collectives, so
that the ranks can agree: a rank that runs out of memory within a real step leaves the others waiting for its gradients.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from cifar10_accel.errors import OutOfResourcesError, SettingsError
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import TrainingState
from cifar10_accel.training.step import forward

# Messages of CUDA's libraries and of the CPU allocator; torch.OutOfMemoryError covers only its own allocator.
SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")

MODEL, AUGMENTATION = 1, 2  # the parts of a step that may need too much memory

logger = logging.getLogger(__name__)


def fit_micro_batch(state: TrainingState, setup: RunSetup) -> RunSetup:
    """Return the setup with as many accumulation steps as it takes until a micro-batch fits on every rank.

    All ranks must call this; all get the same number. The state is not changed.

    Raises:
        OutOfResourcesError: Not even one image at a time fits, or not the augmentation of a batch.
        SettingsError: The loss does not depend on a parameter, and there are several processes.
    """
    while part := _part_of_all_ranks(state, _part_that_runs_out(state, setup)):
        if part == AUGMENTATION:
            raise OutOfResourcesError(
                f"out of memory in the augmentation of a batch of {setup.plan.batch_size} images; lower --batch-size"
            )
        plan = setup.plan.with_smaller_micro_batches()
        if plan is None:
            raise OutOfResourcesError("out of memory with one image at a time; lower --width or take another device")
        logger.info(
            f"out of memory: using {plan.grad_accum_steps} micro-batches per process instead of "
            f"{setup.plan.grad_accum_steps} for each batch of {plan.batch_size}; set it with "
            f"--grad-accum-steps {plan.grad_accum_steps}"
        )
        setup = setup.with_plan(plan)
    return setup


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Context that turns out-of-memory errors into an `OutOfResourcesError`; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "DataLoader worker" in str(error):  # the kernel kills these first
            raise OutOfResourcesError(
                "a loader worker was killed, as happens when memory runs out; lower --num-workers or give "
                "--augment-backend batched, which has none"
            ) from error
        if not _is_out_of_memory(error):
            raise
        reason = (str(error) or "MemoryError").splitlines()[0]
        raise OutOfResourcesError(
            f"out of memory ({reason}); raise --grad-accum-steps or lower --batch-size; lower --eval-batch-size if it "
            "happened in an evaluation"
        ) from error


def _part_that_runs_out(state: TrainingState, setup: RunSetup) -> int:
    """Try the next micro-batch at full image size, without DDP, so that no rank waits for another.

    Returns:
        AUGMENTATION, MODEL, or 0 if it fits.
    """
    full_size = setup.with_plan(replace(setup.plan, low_res_epochs=0))
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    recorder, state.recorder = state.recorder, None
    part = AUGMENTATION  # of all images of a step at once, however many micro-batches there are
    try:
        batch = next(full_size.loader.batches(state.step, state.step + 1))[0]
        part = MODEL
        loss, _ = forward(state, state.model, batch)
        state.accelerator.backward(loss)
        _require_gradients(state)
        return 0
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return part
    finally:
        state.recorder = recorder
        state.optimizer.zero_grad()
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _require_gradients(state: TrainingState) -> None:
    """Raise `SettingsError` if DDP would wait for the gradients of parameters that the loss does not depend on."""
    trained = [(name, parameter) for name, parameter in state.model.named_parameters() if parameter.requires_grad]
    unused = [name for name, parameter in trained if parameter.grad is None]
    if unused and state.accelerator.num_processes > 1:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise SettingsError(
            f"model: the loss does not depend on {unused[0]}{more}, for whose gradients several processes would wait; "
            "remove these parameters, or give their names, or those of their modules, to --freeze"
        )


def _part_of_all_ranks(state: TrainingState, part: int) -> int:
    """Return the part that runs out of memory on some rank, the same on all ranks."""
    if part and torch.cuda.is_available():
        torch.cuda.empty_cache()  # the failed attempt has reserved blocks of other sizes
    return int(state.accelerator.gather(torch.tensor([part], device=state.accelerator.device)).max())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)
