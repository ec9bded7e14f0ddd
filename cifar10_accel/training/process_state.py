"""State of the process that a training changes, put back afterwards: a notebook goes on with what it had."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """Context after which torch's random numbers are as before, on the CPU and on the accelerator."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    module = None if device is None else torch.get_device_module(device)
    was_in_use = _is_in_use(module)  # else asking for its state would take memory
    random_state = torch.get_rng_state()
    random_state_on_device = module.get_rng_state() if module is not None and was_in_use else None
    try:
        yield
    finally:
        torch.set_rng_state(random_state)
        if module is not None and was_in_use:
            module.set_rng_state(random_state_on_device)
        elif module is not None and _is_in_use(module):
            module.manual_seed_all(torch.initial_seed())  # as when it is used for the first time


def _is_in_use(module: Any) -> bool:
    """Return whether a device module such as `torch.cuda` has been initialised; some always are."""
    return module is not None and bool(getattr(module, "is_initialized", lambda: True)())


def _flushes_denormals() -> bool:
    """Return whether this thread computes with denormal numbers as zero, which torch can only set."""
    return float(torch.tensor([1e-40]) * 1) == 0
