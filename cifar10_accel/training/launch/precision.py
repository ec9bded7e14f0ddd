"""The precision of a launch: as the settings or the launch ask, else what the hardware computes fastest."""

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.runs.run_folder import RUNS, RunFolder
from cifar10_accel.settings import RunSettings

TENSOR_CORES = (7, 0)  # compute capability of the first GPUs that compute fp16 faster than float32

logger = logging.getLogger(__name__)


def choose_precision(device: torch.device) -> tuple[str, str]:
    """Return the precision that `auto` stands for on a device, and the reason in words.

    Returns:
        "bf16", "fp16" or "no" (float32), and the end of the sentence "auto, since ...".
    """
    if device.type == "cpu":
        if has_bf16_instructions():
            return "bf16", "this CPU has bf16 instructions"
        return "no", "this CPU has no bf16 instructions"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes bf16"
        if torch.cuda.get_device_capability(device) >= TENSOR_CORES:
            return "fp16", "this GPU computes fp16 and no bf16"
        return "no", "this GPU computes half precision no faster"
    return "no", f"half precision has not been measured on {device.type}"


def has_bf16_instructions() -> bool:
    """Return whether this CPU has bf16 instructions; without them bf16 is many times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def is_computed_well(precision: str, device: torch.device) -> bool:
    """Return False for a precision that a device emulates many times slower, or does not compute at all."""
    if device.type == "cpu":
        return precision == "no" or (precision == "bf16" and has_bf16_instructions())
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


def _check_device(precision: str, launch: PartialState, *, continued: Path | None = None) -> None:
    """Refuse a precision that the device does not compute; warn of one that it emulates many times slower.

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
        logger.warning("bf16 on a %s without bf16 instructions is many times slower; %s", device, remedy)


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
