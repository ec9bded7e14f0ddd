"""torch.compile: a test of the tools that it needs and PyTorch does not bring, and its limit for many models."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cifar10_accel.errors import MachineError

RECOMPILE_LIMIT = 64


def require_compiler(device: torch.device) -> None:
    """Compile and run a small function on the device, as the model's compilation would only do in the first step.

    Raises:
        MachineError: It fails, most often because there is no C++ compiler (on a GPU: no C compiler or Triton).
    """

    def scale(values: Tensor) -> Tensor:
        return 2 * values + 1

    try:
        torch.compile(scale)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, the linker, the loader of libraries, or Triton
        raise MachineError(
            f"compile: torch.compile does not work on this machine ({_reason(error)}); install what is missing "
            "(a C++ compiler such as g++ and Python's headers; for a GPU also Triton), or give --no-compile"
        ) from None


@contextmanager
def many_compiled_models(is_compiled: bool) -> Iterator[None]:
    """Context in which up to RECOMPILE_LIMIT forms of one class are compiled.

    By default torch.compile warns after eight, and computes without compiling.
    """
    if not is_compiled:
        yield
        return
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
        yield


def _reason(error: Exception) -> str:
    """Return the first line of the message that says something, without the advice to PyTorch's developers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("backend=", "Set TORCH"))]
    return telling[0][:200] if telling else type(error).__name__
