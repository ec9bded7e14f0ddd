"""Named arrays in one file, an npz: written whole or not at all, and read as if anybody could have written it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar10_accel.errors import InputError

Arrays = Mapping[str, npt.NDArray[Any]]


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Writes the arrays; equal ones give equal files."""
    aside = path.with_name(f"{path.name}.tmp")
    with aside.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def load_arrays(path: Path, names: Iterable[str], *, what: str, advice: str) -> Arrays:
    """The arrays of these names; `InputError` with what it should have been and the advice if one cannot be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in names}  # a foreign zip gives bytes
    except FileNotFoundError:
        reason = "no such file"
    except Exception as error:  # a damaged zip can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(f"{path}: not readable as {what} ({reason}); {advice}")
