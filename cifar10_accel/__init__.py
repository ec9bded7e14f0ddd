"""CIFAR-10 training on Hugging Face Accelerate and Weights & Biases: one loop, the same run everywhere.

The Python API: `Settings` describes a run, `fit` trains it. Importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar10_accel.settings import Settings
    from cifar10_accel.train import fit

__version__ = "0.1.0"
__all__ = ["Settings", "__version__", "fit"]

_MODULES = {"Settings": "cifar10_accel.settings", "fit": "cifar10_accel.train"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
