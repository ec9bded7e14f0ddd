"""Checkpoints that are complete or absent: written to a temporary folder, hashed, renamed; verified before use.

    step-000390.tmp/ -> model.safetensors, average.safetensors, training.pt, manifest.json
                     -> fsync -> rename to step-000390/ -> fsync the parent -> prune the oldest

A process killed at any moment leaves either the old set of checkpoints or the new one. Loading runs
no code: safetensors, and `torch.load(weights_only=True)`.
"""

import glob
import hashlib
import io
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.files import use_default_permissions
from cifar10_accel.runs import legacy

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
MANIFEST = "manifest.json"
FORMAT_VERSION = 2  # 1: other names of weights and keys, see legacy.py
REQUIRED_FILES = {"model.safetensors", "training.pt"}


@dataclass(frozen=True, kw_only=True)
class CheckpointData:
    """Everything that a step depends on besides settings and data, on the CPU."""

    step: int  # steps done
    model: Tensors
    average: Tensors | None  # the averaged weights, if there are any
    training: dict[str, Any]  # optimizer state, loss scale, running sums: tensors and plain values

    @property
    def evaluated(self) -> Tensors:
        """The weights whose accuracy counts: the averaged ones if there are any."""
        if self.average is None:
            return self.model
        prefix = "module."  # torch's AveragedModel keeps the model under this name, beside its counter
        return {name.removeprefix(prefix): value for name, value in self.average.items() if name.startswith(prefix)}


def save(folder: Path, data: CheckpointData, *, keep: int) -> Path:
    """Write `folder/step-XXXXXX`, prune to the `keep` newest, and return the path. Only for the main process.

    Raises:
        OutOfResourcesError: It cannot be written; the older checkpoints are then unchanged.
    """
    target = folder / f"step-{data.step:06d}"
    if target.exists():  # the run was killed after this save, and verified it when it resumed
        return target
    save_as(target, data)
    for old in _steps(folder)[:-keep]:
        _remove(old)
    return target


def save_as(target: Path, data: CheckpointData) -> None:
    """Write a checkpoint, in place of an earlier one of this name. Only for the main process.

    Raises:
        OutOfResourcesError: It cannot be written.
    """
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        _write(temporary, data)
        if os.path.lexists(target):  # another process may have its files open, so that it cannot be removed yet
            target.rename(target.with_name(f"{target.name}.{uuid4().hex[:8]}.tmp"))
        temporary.rename(target)
        _fsync(target.parent)
        for replaced in target.parent.glob(f"{glob.escape(target.name)}.*.tmp"):
            _remove(replaced)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of these
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutOfResourcesError(f"{target}: cannot be saved ({error}); free some disk space") from error


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that verifies, or None if there never was one. Nothing on disk is changed.

    Damaged checkpoints are skipped with a warning.

    Raises:
        InputError: Only damaged ones are left. Starting again from nothing must be the user's decision.
    """
    for path in reversed(_steps(folder)):
        damage = _find_damage(path)
        if damage is None:
            return path
        logger.warning("%s is damaged (%s); using the one before", path, damage)
    damaged = [path.name for path in sorted(folder.glob("step-*")) if path.suffix != ".tmp"]
    if damaged:
        raise InputError(f"{folder}: every checkpoint is damaged ({', '.join(damaged)}); delete it to start again")
    return None


def clean_up(folder: Path) -> Path | None:
    """Remove the remains of a killed save, rename damaged checkpoints to `.bad`, and return the newest valid one.

    Only the main process of the training that owns the folder may call this.

    Raises:
        InputError: Only damaged checkpoints are left, or one cannot be renamed.
    """
    for leftover in folder.glob("*.tmp"):
        _remove(leftover)
    valid, steps = newest(folder), _steps(folder)
    for path in steps[steps.index(valid) + 1 :] if valid is not None else []:
        bad = path.with_suffix(".bad")
        _remove(bad)
        try:
            path.rename(bad)
        except OSError as error:  # on all ranks, as a `UserError`
            raise InputError(f"{path}: damaged, and cannot be renamed ({error.strerror}); remove it") from None
    return valid


def load(path: Path) -> CheckpointData:
    """Return the content of a checkpoint, on the CPU, after verifying it against its manifest.

    Raises:
        InputError: It is damaged, or is not a checkpoint of this project.
    """
    damage = _find_damage(path)
    if damage is not None:
        raise InputError(f"{path}: {damage}; use another checkpoint or train again")
    average = path / "average.safetensors"
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        data = CheckpointData(
            step=manifest["step"],
            model=load_safetensors((path / "model.safetensors").read_bytes()),
            average=load_safetensors(average.read_bytes()) if average.exists() else None,
            training=torch.load(path / "training.pt", weights_only=True, map_location="cpu"),
        )
        return _translate(data) if manifest["format_version"] == 1 else data
    except Exception as error:  # files with a valid hash can hold anything, so any exception can be raised
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a checkpoint of this project ({reason}); use another or train again") from None


def step_of(path: Path) -> int:
    """Return the step of a checkpoint that was verified before, without reading its tensors."""
    return int(json.loads((path / MANIFEST).read_text())["step"])


def require_readable(state: Any, title: str) -> None:
    """Raise `InputError` for a part of a checkpoint that could be saved, but not read back."""
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{title} may have tensors and plain values only ({reason})") from None


def load_into(module: torch.nn.Module, tensors: Tensors, *, source: Path) -> None:
    """Copy the tensors into the module.

    Args:
        module: The module whose state is replaced.
        tensors: Its new state, by name.
        source: Where the tensors come from, for the error message.

    Raises:
        InputError: Names the first tensor whose name or shape does not fit; the module is then unchanged.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        expected = tuple(own[name].shape) if name in own else "absent"
        found = tuple(tensors[name].shape) if name in tensors else "absent"
        if found != expected:
            raise InputError(
                f"{source}: {name} is {found} there but {expected} in this model; use the settings of that run"
            )
    module.load_state_dict(tensors)


def contiguous_copies(tensors: Tensors) -> Tensors:
    """Return copies as safetensors stores them: contiguous, and of shared weights one for each name."""
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _steps(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("step-*") if path.suffix == "" and path.is_dir())
    return sorted(found, key=lambda path: (len(path.name), path.name))  # a million steps have one digit more


def _translate(data: CheckpointData) -> CheckpointData:
    """Return a checkpoint of format version 1 under today's names."""

    def renamed(tensors: Tensors) -> Tensors:
        return {legacy.translate_weight_name(name): tensor for name, tensor in tensors.items()}

    return CheckpointData(
        step=data.step,
        model=renamed(data.model),
        average=None if data.average is None else renamed(data.average),
        training=legacy.translate_training(data.training),
    )


def _write(folder: Path, data: CheckpointData) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(contiguous_copies(data.model), folder / "model.safetensors")
    if data.average is not None:
        save_file(contiguous_copies(data.average), folder / "average.safetensors")
    torch.save(data.training, folder / "training.pt")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "step": data.step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in folder.iterdir():
        use_default_permissions(path)
    for path in [*folder.iterdir(), folder]:
        _fsync(path)


def _remove(path: Path) -> None:
    """Remove a folder, or the link to one, if it is there; what cannot be removed stays, with a warning."""
    try:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:  # as on NFS while another process has a file open
        logger.warning("%s cannot be removed (%s)", path, error.strerror or error)


def _find_damage(path: Path) -> str | None:
    """Return the reason why a checkpoint is damaged, or None if every file agrees with its manifest.

    Raises:
        InputError: A file cannot be read, so that it is not known.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            if Path(name).name != name:
                return f"{MANIFEST} names {name}, which is not in its folder"
            file = path / name
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"the contents of {name} have changed"
        if not manifest["files"].keys() >= REQUIRED_FILES or not isinstance(manifest["step"], int):
            return f"{MANIFEST} is incomplete"
        if manifest["format_version"] not in range(1, FORMAT_VERSION + 1):
            return f"its format version is {manifest['format_version']}, at most {FORMAT_VERSION}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, NotADirectoryError):
        return f"{MANIFEST} is not readable"
    except OSError as error:  # no permission, or a fault of the disk
        raise InputError(
            f"{error.filename or path}: cannot be read ({error.strerror}); make it readable, or move {path.name} away "
            "to use another checkpoint"
        ) from None
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
