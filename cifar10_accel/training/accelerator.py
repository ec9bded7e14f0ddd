"""The Accelerator of the process, with checks that the launch does what the user expects."""

import atexit
import ctypes
import gc
import importlib
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, parse_flag_from_env

from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.settings import RunSettings
from cifar10_accel.subprocesses import num_cores
from cifar10_accel.training.launch.agreement import require_same_launch
from cifar10_accel.training.launch.joining import join_launch
from cifar10_accel.training.launch.precision import resolve_precision

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
# Set by `accelerate launch`: engines that shard or replace the model, the optimizer or the step.
OTHER_ENGINES = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)


def make_accelerator(settings: RunSettings) -> Accelerator:
    """Return the Accelerator of this process and set precision, threads and kernels. All ranks must call this.

    Raises:
        SettingsError: The launch is incomplete, or one that Accelerate would accept silently: several processes that
            each run as the only one, fp16 on a CPU (which computes in float32), or ranks with different settings or
            precisions.
        InputError: The ranks have different versions of the packages.
        LostPeerError: A process of the launch is missing or cannot be reached.
    """
    num_launched = int(os.environ.get("WORLD_SIZE", "1"))
    without_gpu = not torch.accelerator.is_available()
    timeout = timedelta(seconds=settings.collective_timeout)
    if num_launched > 1:
        # Imported later, as DDP does, its functions would keep the process group alive as a default argument.
        importlib.import_module("torch.distributed.nn.functional")
        atexit.register(_leave_process_group)
    _refuse_other_engines()
    # Accelerate keeps one state, with one precision and one count of accumulation steps, for all Accelerators of a
    # process. Here each run gets a state of its own; an earlier Accelerator, also one of the caller's, keeps its own.
    for shared in (AcceleratorState, GradientState):
        shared._shared_state = type(shared._shared_state)()
    with _joined_launch(timeout, num_launched=num_launched):
        try:
            # With more than one process on a machine without GPU, all would otherwise become rank 0 of 1.
            on_cpu = (without_gpu and num_launched > 1) or parse_flag_from_env("ACCELERATE_USE_CPU")
            joined = PartialState(cpu=on_cpu, timeout=timeout)  # this rank's device, on which its precision depends
            require_same_launch(joined, settings)
            accelerator = Accelerator(
                mixed_precision=resolve_precision(settings, joined),
                cpu=on_cpu,
                # Explicit, because a launch file or the environment would change the gradients or the model otherwise;
                # accumulation and compilation are settings of this package.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                dynamo_backend="no",
            )
        except SettingsError:
            raise
        except ValueError as error:  # such as an incomplete set of a launcher's variables
            raise SettingsError(f"launch: {error}; start with `accelerate launch` or torchrun") from None
    if accelerator.num_processes != num_launched:
        raise SettingsError(
            f"launch: WORLD_SIZE is {num_launched} but Accelerate sees {accelerator.num_processes} process(es); "
            "start with `accelerate launch --multi_gpu --num_processes N -m cifar10_accel.train` or torchrun"
        )
    if accelerator.device.type == "cpu":
        torch.set_num_threads(
            settings.num_threads or max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        )
        torch.set_flush_denormal(True)
        _keep_freed_memory()
    _choose_kernels(settings.deterministic)
    return accelerator


def training_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return the dtype of the model's inputs: half precision with mixed precision."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def launch_info(accelerator: Accelerator) -> dict[str, Any]:
    """Return the device, precision and numbers of processes and threads in effect."""
    kind = accelerator.device.type
    return {
        "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
    }


def _refuse_other_engines() -> None:
    """Raise `SettingsError` for a launch that Accelerate would carry out with another engine or in FP8."""
    requested = [name for name in OTHER_ENGINES if os.environ.get(name, "false").lower() in ("1", "true", "yes")]
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "fp8":
        requested.append("ACCELERATE_MIXED_PRECISION=fp8")
    if requested:
        raise SettingsError(
            f"launch: {requested[0]} is set, by a launch file or `accelerate launch`, but training here is plain data "
            "parallel in float32, fp16 or bf16; remove it from the launch"
        )


def _joined_launch(timeout: timedelta, *, num_launched: int) -> AbstractContextManager[None]:
    """Return the context that joins the processes of this launch; an empty one if there is nothing to join."""
    if num_launched == 1 or "RANK" not in os.environ or torch.distributed.is_initialized():
        return nullcontext()
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return join_launch(torch.distributed.get_default_backend_for_device(found or "cpu"), timeout)


def _leave_process_group() -> None:
    """Stop gloo's threads while the interpreter still runs.

    A thread that releases a tensor while the interpreter is finalized aborts the process, and its launcher reports a
    failure (https://github.com/pytorch/pytorch/issues/190489). The threads are joined when the last reference to the
    group is released; DDP holds one and may be part of a reference cycle, hence the garbage collection.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def _choose_kernels(deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for this process; no effect with other C libraries.

    Every step on a CPU allocates and frees the same activations. By default glibc maps large blocks separately, and the
    kernel has to provide and clear their pages each time; BENCHMARKS.md has the measured cost.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never return memory to the kernel


def run_on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Run `action` on the main process and return its result on every rank. All ranks must call this.

    Args:
        action: Its result must be picklable.

    Raises:
        UserError: `action` raised one; every rank raises the same.
    """
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [action()]
        except UserError as error:
            error.is_shared = True
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    result: T = outcome[0]
    return result
