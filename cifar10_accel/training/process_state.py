"""State of the process that a training changes, put back afterwards: a notebook goes on with what it had."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState, GradientState


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Context after which threads, deterministic mode, denormals, random numbers and Accelerate's state are as before.

    Signal handlers are put back by the contexts that set them.
    """
    accelerate_states = [(shared, shared._shared_state) for shared in (AcceleratorState, GradientState)]
    num_threads = torch.get_num_threads()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmarks_kernels = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    flushes_denormals = _flushes_denormals()
    try:
        with restored_random_numbers():
            yield
    finally:
        for shared, state in accelerate_states:
            shared._shared_state = state
        torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmarks_kernels
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        torch.set_flush_denormal(flushes_denormals)


@contextmanager
def restored_random_numbers() -> Iterator[None]:
    """Context after which torch's random numbers are as before, on the CPU and on an accelerator in use."""
    on_device = None
    if torch.accelerator.is_available():
        module = torch.get_device_module(torch.accelerator.current_accelerator())
        is_in_use = getattr(module, "is_initialized", lambda: True)  # asking CUDA for its state would take memory
        on_device = module if is_in_use() else None
    random_state = torch.get_rng_state()
    random_state_on_device = None if on_device is None else on_device.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(random_state)
        if on_device is not None:
            on_device.set_rng_state(random_state_on_device)


def _flushes_denormals() -> bool:
    """Return whether this thread computes with denormal numbers as zero, which torch can only set."""
    return float(torch.tensor([1e-40]) * 1) == 0
