"""CIFAR-10 training on Hugging Face Accelerate and Weights & Biases: one loop, the same run everywhere.

The Python API: `Settings` describes a run, `fit` trains it, `load_run` reads one from disk; both return a `Run`.
Importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar10_accel.data.dataset import Dataset
    from cifar10_accel.data.image_format import ImageFormat
    from cifar10_accel.errors import UserError
    from cifar10_accel.settings import Settings
    from cifar10_accel.train import fit
    from cifar10_accel.training.callbacks import BestCheckpoint, CallbackContext, EarlyStopping
    from cifar10_accel.training.run import Run, load_run

__version__ = "0.1.0"
__all__ = [
    "BestCheckpoint",
    "CallbackContext",
    "Dataset",
    "EarlyStopping",
    "ImageFormat",
    "Run",
    "Settings",
    "UserError",
    "__version__",
    "fit",
    "load_run",
]

_MODULES = {
    "BestCheckpoint": "cifar10_accel.training.callbacks",
    "CallbackContext": "cifar10_accel.training.callbacks",
    "Dataset": "cifar10_accel.data.dataset",
    "EarlyStopping": "cifar10_accel.training.callbacks",
    "ImageFormat": "cifar10_accel.data.image_format",
    "Run": "cifar10_accel.training.run",
    "Settings": "cifar10_accel.settings",
    "UserError": "cifar10_accel.errors",
    "fit": "cifar10_accel.train",
    "load_run": "cifar10_accel.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
