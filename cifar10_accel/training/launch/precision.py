"""The precision of a launch: as the settings or the launch ask, else what the hardware computes fastest."""

import logging
import os
import socket
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.runs.run_folder import RUNS, RunFolder
from cifar10_accel.settings import RunSettings

TENSOR_CORES = (7, 0)  # compute capability of the first GPUs that compute fp16 faster than float32
CLEARLY_FASTER = 1.2  # times as fast; below that the rounding of bf16 is not worth it
TIMED_MATRIX = 512  # rows and columns: all cores are busy, and a product takes milliseconds
TIMED_ROUNDS = 7

logger = logging.getLogger(__name__)


def choose_precision(device: torch.device) -> tuple[str, str]:
    """Return the precision that `auto` stands for on a device, and the reason in words.

    Returns:
        "bf16", "fp16" or "no" (float32), and the end of the sentence "auto, since ...".
    """
    if device.type == "cpu":
        return _choose_for_cpu()
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes bf16"
        if torch.cuda.get_device_capability(device) >= TENSOR_CORES:
            return "fp16", "this GPU computes fp16 and no bf16"
        return "no", "this GPU computes half precision no faster"
    return "no", f"half precision has not been measured on {device.type}"


def is_computed_well(precision: str, device: torch.device) -> bool:
    """Return False for a precision that gains nothing: computed no faster than float32 by a CPU, or only emulated."""
    if device.type == "cpu":
        return precision in ("no", _choose_for_cpu()[0])
    if device.type == "cuda" and precision == "bf16":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def launch_precision() -> str | None:
    """Return the mixed precision that `accelerate launch` asks for, by its flag or file; None if it asks for none.

    "no" asks for nothing: `accelerate launch` passes it on, too, where neither flag nor file says anything.
    """
    requested = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return None if requested == "no" else requested


def resolve_precision(settings: RunSettings, launch: PartialState) -> str:
    """Return the precision of a launch, the same on every rank. All ranks must call this, with the same settings.

    `auto` is, in this order: what the launch asks for; that of the run in the run folder, if it continues there; what
    the devices of all ranks compute fastest.

    Raises:
        SettingsError: The launch asks for something else on another machine, or for what the device cannot compute.
    """
    if settings.precision != "auto":
        _check_device(settings.precision, launch)
        return settings.precision
    folder = settings.run_dir or (RUNS / settings.run_name if settings.run_name else None)
    mine = _Rank(
        host=socket.gethostname(),
        requested=launch_precision(),
        continued=None if folder is None else _precision_until_now(RunFolder(folder)),
        chosen=choose_precision(launch.device)[0],
    )
    everyone: list[_Rank] = gather_object([mine])
    main = everyone[0]
    for rank, other in enumerate(everyone):
        if other.requested != main.requested:
            raise SettingsError(
                f"launch: mixed precision is {other.requested or 'no'} for rank {rank} on {other.host} but "
                f"{main.requested or 'no'} for rank 0 on {main.host}; give every machine the same"
            )
    if main.requested is None and main.continued is not None:
        if main.continued != main.chosen and launch.is_main_process:
            logger.warning("precision: %s, as the run in %s has been trained until now", main.continued, folder)
        _check_device(main.continued, launch, continued=folder)
        return main.continued
    precision = main.requested or _fastest_for_all([each.chosen for each in everyone])
    _check_device(precision, launch)
    return precision


def explain_precision(precision: str, settings: RunSettings, device: torch.device) -> str:
    """Return in words where the precision of a launch, which `resolve_precision` gave, comes from."""
    if settings.precision != "auto":
        return "as given"
    if launch_precision():
        return "as the launch asks"
    chosen, reason = choose_precision(device)
    if precision == chosen:
        return f"auto, since {reason}"
    return f"auto: not {chosen}, because of the run that continues in the run folder or of another rank's hardware"


@dataclass(frozen=True)
class _Rank:
    """The precisions that one rank knows of."""

    host: str
    requested: str | None  # by the launch
    continued: str | None  # of the run in the run folder; only rank 0's counts
    chosen: str  # for the device


def _choose_for_cpu() -> tuple[str, str]:
    """Return what `choose_precision` returns for a CPU.

    AVX-512 bf16 alone does not tell: where a core has two units for float32 and one for bf16, bf16 is half as fast.
    """
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16"):
        return "bf16", "this CPU has AMX for bf16"
    if not capabilities.get("avx512_bf16"):
        return "no", "this CPU has no bf16 instructions"
    speedup = _bf16_speedup()
    reason = f"this CPU computes bf16 {speedup:.1f} times as fast as float32"
    return "bf16" if speedup >= CLEARLY_FASTER else "no", reason


@cache
def _bf16_speedup() -> float:
    """Return how many times as fast as in float32 this CPU multiplies two matrices in bf16, measured in milliseconds.

    The precisions take turns and the fastest round of each counts, so that other load hardly matters.
    """
    dtypes = torch.float32, torch.bfloat16
    in_float32, in_bf16 = (torch.ones(TIMED_MATRIX, TIMED_MATRIX, device="cpu", dtype=dtype) for dtype in dtypes)
    rounds = [(_seconds_of_product(in_float32), _seconds_of_product(in_bf16)) for _ in range(1 + TIMED_ROUNDS)]
    rounds = rounds[1:]  # the first one prepares the kernels
    return min(seconds for seconds, _ in rounds) / min(seconds for _, seconds in rounds)


def _seconds_of_product(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - start


def _check_device(precision: str, launch: PartialState, *, continued: Path | None = None) -> None:
    """Refuse a precision that the device does not compute; warn of one that is no faster than float32.

    Args:
        precision: The one that is asked for.
        launch: Of this rank.
        continued: The run folder that asks for it; None: the settings or the launch do.
    """
    if is_computed_well(precision, launch.device):
        return
    if precision == "fp16" and continued is not None:
        raise SettingsError(
            f"precision: the run in {continued} is in 'fp16', which a CPU does not compute; continue it on a GPU, or "
            "give another --run-name"
        )
    if precision == "fp16":
        raise SettingsError("precision: 'fp16' on a CPU would silently be fp32; give --precision no (or bf16)")
    if launch.is_main_process:
        remedy = "give --precision no" if continued is None else "continue it elsewhere, or give another --run-name"
        device = "CPU" if launch.device.type == "cpu" else "GPU"
        logger.warning("bf16 is no faster than float32 on this %s; %s", device, remedy)


def _fastest_for_all(chosen: list[str]) -> str:
    """Return one precision for ranks with different hardware: of two kinds of GPU the older one's, else float32."""
    different = set(chosen)
    if len(different) == 1:
        return chosen[0]
    return "fp16" if different == {"bf16", "fp16"} else "no"


def _precision_until_now(folder: RunFolder) -> str | None:
    """Return the precision of the run that a training in this folder continues; None if there is none."""
    try:
        precision = folder.settings().precision if folder.has_steps() else "auto"
    except UserError:  # reported when the folder is opened
        return None
    return None if precision == "auto" else precision
