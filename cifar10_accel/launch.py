"""Builds the one Accelerator of a process and refuses launches that would not be what they seem."""

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from cifar10_accel.allocator import keep_freed_memory
from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.settings import RunSettings, Settings

T = TypeVar("T")


def make_accelerator(settings: RunSettings) -> Accelerator:
    """The Accelerator of this process, with precision, threads and kernels as the settings say.

    All ranks must call this. Raises `SettingsError` for a launch that Accelerate would accept in
    silence: several processes that each believe to be alone, or fp16 on a CPU (it computes fp32).
    """
    num_launched = int(os.environ.get("WORLD_SIZE", "1"))
    without_gpu = not torch.accelerator.is_available()
    timeout = timedelta(seconds=settings.collective_timeout)
    if num_launched > 1:
        # Imported later, as by DDP, it would hold the process group for ever: as a default of its functions.
        importlib.import_module("torch.distributed.nn.functional")
    _join_after_restart(timeout)
    try:
        accelerator = Accelerator(
            mixed_precision=settings.precision,
            cpu=without_gpu and num_launched > 1,  # else N ranks of a GPU launch all become rank 0 of 1
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        )
    except ValueError as error:  # half of a launcher's variables, say
        raise SettingsError(f"launch: {error}; start with `accelerate launch` or torchrun") from None
    if accelerator.num_processes != num_launched:
        raise SettingsError(
            f"launch: WORLD_SIZE is {num_launched} but Accelerate sees {accelerator.num_processes} process(es); "
            "start with `accelerate launch --multi_gpu --num_processes N -m cifar10_accel.train` or torchrun"
        )
    if accelerator.device.type == "cpu":
        _check_cpu_precision(accelerator)
        torch.set_num_threads(settings.num_threads or _cores_per_process())
        torch.set_flush_denormal(True)
        keep_freed_memory()
    _choose_kernels(settings.deterministic)
    if accelerator.num_processes > 1:
        atexit.register(_leave_process_group)
    return accelerator


def without_auto(settings: Settings, *, on_cpu: bool) -> Settings:
    """The settings with the recipe that `auto` stands for on this hardware; unchanged if they name one."""
    if settings.recipe != "auto":
        return settings
    return settings.with_recipe("cpu" if on_cpu else "resnet24")


def training_dtype(accelerator: Accelerator) -> torch.dtype:
    """What the net's inputs are computed in: half precision where the launch asks for it."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def launched_as(accelerator: Accelerator) -> dict[str, Any]:
    """Device, precision and numbers of processes and threads that are really in effect."""
    kind = accelerator.device.type
    return {
        "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
    }


def _join_after_restart(timeout: timedelta) -> None:
    """Joins the other ranks where torch's launcher has started all again, under keys of this start's own.

    The launcher's store outlives the ranks: those of before have left their addresses in it, and a rank that
    reads one of these before its new owner has written waits for a process that is gone.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if start == "0" or torch.distributed.is_initialized():
        return
    store, rank, num_processes = next(rendezvous("env://", timeout=timeout))
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"start {start}", store),
        rank=rank, world_size=num_processes, timeout=timeout,
    )  # fmt: skip


def _check_cpu_precision(accelerator: Accelerator) -> None:
    if accelerator.mixed_precision == "fp16":
        raise SettingsError("precision: 'fp16' on a CPU would silently be fp32; give --precision no (or bf16)")
    if accelerator.mixed_precision == "bf16" and accelerator.is_main_process and not has_bf16_instructions():
        print(
            "warning: bf16 on a CPU without bf16 instructions is many times slower; give --precision no",
            file=sys.stderr,
        )


def has_bf16_instructions() -> bool:
    """Whether this CPU computes bf16 itself; without that it is emulated, many times slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _cores_per_process() -> int:
    """This machine's cores shared among its ranks; launchers set OMP_NUM_THREADS=1 and would leave the rest idle."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _leave_process_group() -> None:
    """Ends gloo's threads while Python still runs.

    A thread that lets go of a tensor while the interpreter is finalized aborts the process, and its launcher
    calls the run failed (https://github.com/pytorch/pytorch/issues/190489). The threads are waited for when the
    last reference to the group goes, and DDP, which may hang in a cycle, has one.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def _choose_kernels(deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What `action` returns on the main process, on every rank; a `UserError` there is raised on every rank.

    All ranks must call this. The result travels by pickle between processes of one run.
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
