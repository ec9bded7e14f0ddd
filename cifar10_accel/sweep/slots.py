"""Places for trials on this machine: which GPUs or how many CPU threads each of several trials gets."""

import os
import subprocess
from dataclasses import dataclass

from cifar10_accel.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What a trial that runs here gets: variables of its environment, and its CPU threads per process if shared out."""

    environment: dict[str, str]
    num_threads: int | None


def slots(num_workers: int | None, *, num_processes: int) -> list[Slot]:
    """As many slots as workers; by default one for each GPU (or group of `num_processes`), and one on a CPU.

    Workers beyond the GPUs share them in turn. Raises `SettingsError` if one trial needs more GPUs than there are.
    """
    gpus = visible_gpus()
    if gpus and num_processes > len(gpus):
        raise SettingsError(f"num-processes: {num_processes} for each trial, but this machine shows {len(gpus)} GPU(s)")
    count = num_workers or max(1, len(gpus) // num_processes)
    if not gpus:
        # One trial shares the cores among its own ranks; several must be told of each other.
        threads = max(1, _num_cores() // (count * num_processes)) if count > 1 else None
        return [Slot(environment={}, num_threads=threads)] * count
    groups = [
        [gpus[(worker * num_processes + rank) % len(gpus)] for rank in range(num_processes)] for worker in range(count)
    ]
    return [Slot(environment={"CUDA_VISIBLE_DEVICES": ",".join(group)}, num_threads=None) for group in groups]


def visible_gpus() -> list[str]:
    """The GPUs that a training here could use, as CUDA_VISIBLE_DEVICES names them; found without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
