"""Agreement of the ranks before they train: the same settings, versions and checkpoint on every machine.

Each rank reads its own command line, environment and files. A difference would otherwise train a wrong model without a
word, or leave the ranks waiting for each other.
"""

import hashlib
import platform
import socket
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

import cifar10_accel
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.runs.checkpoint import MANIFEST
from cifar10_accel.settings import RunSettings, TrackingSettings

# Settings that may differ between machines: the weights do not depend on them, and neither do the ranks' collectives.
PER_MACHINE = frozenset(
    {
        "recipe",
        "data_dir",
        "augment_backend",
        "num_workers",
        "num_threads",
        "collective_timeout",
        "keep_checkpoints",
        "run_dir",
        "run_name",
    }
) | frozenset(TrackingSettings.model_fields)


def require_same_launch(launch: PartialState, settings: RunSettings) -> None:
    """Raise an error, the same on all ranks, if a rank has other settings or versions. All ranks must call this.

    Raises:
        InputError: Another version of this package, torch or Python.
        SettingsError: Another value of a setting.
    """
    if launch.num_processes == 1:
        return
    compared = settings.model_dump(mode="json", exclude=set(PER_MACHINE))
    mine = {"host": socket.gethostname(), "versions": _versions(), "settings": compared}
    everyone = gather_object([mine])
    for kind, error in (("versions", InputError), ("settings", SettingsError)):
        if fault := _difference(everyone, kind):
            found = error(f"launch: {fault}; give every machine the same")
            found.is_shared = True
            raise found


def require_same_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Raise `InputError` on all ranks if one of them does not see rank 0's checkpoint. All ranks must call this.

    Args:
        accelerator: Of this rank.
        path: The checkpoint, as rank 0 names it.
    """
    if accelerator.num_processes == 1:
        return
    try:
        seen = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        seen = None
    everyone = gather_object([(socket.gethostname(), seen)])
    main_host, expected = everyone[0]
    for rank, (host, found) in enumerate(everyone):
        if found != expected:
            what = "no checkpoint" if found is None else f"another checkpoint ({found[:8]})"
            fault = InputError(
                f"run_dir: rank {rank} on {host} sees {what} at {path} where rank 0 on {main_host} has {expected[:8]}; "
                "give a --run-dir on a disk that all machines see"
            )
            fault.is_shared = True
            raise fault


def _versions() -> dict[str, str]:
    return {
        "cifar10_accel": cifar10_accel.__version__,
        "torch": version("torch"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def _difference(everyone: list[dict[str, Any]], kind: str) -> str | None:
    """Return the first difference to rank 0 in words: host, name and both values."""
    first: Mapping[str, Any] = everyone[0]
    for rank, other in enumerate(everyone):
        for name in sorted(first[kind].keys() | other[kind].keys()):
            wanted, found = first[kind].get(name), other[kind].get(name)
            if wanted != found:
                return (
                    f"{name} is {found} for rank {rank} on {other['host']} but {wanted} for rank 0 on {first['host']}"
                )
    return None
