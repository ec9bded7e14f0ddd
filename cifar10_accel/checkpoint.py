"""Checkpoints that are whole or not there: written aside, hashed, renamed; read and verified before use.

    step-000390.tmp/ -> model.safetensors, average.safetensors, training.pt, manifest.json
                     -> fsync -> rename to step-000390/ -> fsync the parent -> prune the oldest

A process killed at any moment leaves either the old set of checkpoints or the new one. Loading runs
no code: safetensors, and `torch.load(weights_only=True)`.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

from cifar10_accel.errors import InputError, OutOfResourcesError

Tensors = dict[str, Tensor]
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
ALWAYS_THERE = {"model.safetensors", "training.pt"}


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything an update depends on besides settings and data, on the CPU."""

    step: int  # updates done
    model: Tensors
    average: Tensors | None  # the averaged weights, if there are any
    training: dict[str, Any]  # optimizer state, loss scale, running sums: tensors and plain values

    @property
    def evaluated(self) -> Tensors:
        """The weights whose accuracy counts: the averaged ones if there are any."""
        if self.average is None:
            return self.model
        prefix = "module."  # torch's AveragedModel keeps the net under this name, beside its counter
        return {name.removeprefix(prefix): value for name, value in self.average.items() if name.startswith(prefix)}


def save(folder: Path, state: State, *, keep: int) -> Path:
    """Writes `folder/step-XXXXXX`, then prunes to the `keep` newest. Only the main process may call this.

    Raises `OutOfResourcesError` if it cannot be written; the older checkpoints are then untouched.
    """
    target = folder / f"step-{state.step:06d}"
    if target.exists():  # killed after this save: it was verified when the run resumed from it
        return target
    aside = target.with_suffix(".tmp")
    try:
        _write(aside, state)
        aside.rename(target)
        _fsync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # full disks raise all three
        shutil.rmtree(aside, ignore_errors=True)
        raise OutOfResourcesError(f"{target}: cannot be saved ({error}); free some disk space") from error
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None if there never was one; changes nothing on disk.

    Damaged ones are passed over with a warning. Raises `InputError` if only damaged ones are left:
    starting again from nothing must be the user's decision.
    """
    for path in reversed(_steps(folder)):
        fault = _fault(path)
        if fault is None:
            return path
        print(f"warning: {path} is damaged ({fault}); using the one before", file=sys.stderr)
    damaged = [path.name for path in sorted(folder.glob("step-*")) if path.suffix != ".tmp"]
    if damaged:
        raise InputError(f"{folder}: no checkpoint is whole ({', '.join(damaged)}); delete the folder to start again")
    return None


def tidy(folder: Path) -> Path | None:
    """`newest`, after removing what a killed save left and renaming damaged checkpoints to `.bad`.

    Only the main process of the training that owns the folder may call this.
    """
    for leftover in folder.glob("*.tmp"):
        shutil.rmtree(leftover)
    whole = newest(folder)
    for path in _steps(folder):
        if whole is not None and path.name > whole.name:
            bad = path.with_suffix(".bad")
            shutil.rmtree(bad, ignore_errors=True)
            path.rename(bad)
    return whole


def load(path: Path) -> State:
    """The state in a checkpoint, verified against its manifest, on the CPU; `InputError` if it is damaged."""
    fault = _fault(path)
    if fault is not None:
        raise InputError(f"{path}: {fault}; use another checkpoint or train again")
    average = path / "average.safetensors"
    try:
        return State(
            step=json.loads((path / MANIFEST).read_text())["step"],
            model=load_safetensors((path / "model.safetensors").read_bytes()),
            average=load_safetensors(average.read_bytes()) if average.exists() else None,
            training=torch.load(path / "training.pt", weights_only=True, map_location="cpu"),
        )
    except Exception as error:  # a manifest can vouch for files that hold anything, and then anything is raised
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a checkpoint of this project ({reason}); use another or train again") from None


def load_into(module: torch.nn.Module, tensors: Tensors, *, source: Path) -> None:
    """Copies the tensors into the module; `InputError` names the first that does not fit, and nothing changes."""
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        here = tuple(own[name].shape) if name in own else "absent"
        there = tuple(tensors[name].shape) if name in tensors else "absent"
        if here != there:
            raise InputError(
                f"{source}: {name} is {there} there but {here} in this model; use the settings the run was made with"
            )
    module.load_state_dict(tensors)


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix == "" and path.is_dir())


def _write(aside: Path, state: State) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_contiguous(state.model), aside / "model.safetensors")
    if state.average is not None:
        save_file(_contiguous(state.average), aside / "average.safetensors")
    torch.save(state.training, aside / "training.pt")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(aside.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "step": state.step, "files": files}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*aside.iterdir(), aside]:
        _fsync(path)


def _contiguous(tensors: Tensors) -> Tensors:
    """Copies in the plain memory order, which is all that safetensors stores."""
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            file = path / Path(name).name
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"the contents of {name} have changed"
        if not manifest["files"].keys() >= ALWAYS_THERE or not isinstance(manifest["step"], int):
            return f"{MANIFEST} is incomplete"
        if manifest["format_version"] != FORMAT_VERSION:
            return f"its format version is {manifest['format_version']}, not {FORMAT_VERSION}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, NotADirectoryError):
        return f"{MANIFEST} is not readable"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
