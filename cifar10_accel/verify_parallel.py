"""Whether a training is the same on 1 and on N processes, update for update, on this machine.

LR, order and pixels must be bit-equal. Losses cannot be: with N processes batch norm sees N pieces of
each batch. One process that takes the batch in the same N pieces, by gradient accumulation, computes
the same function, so with it loss and gradient norm are compared closely; what is left is the order
of sums. Such a difference grows from update to update (a ReLU that flips, at a high LR), so only the
first updates are judged by a tolerance; of the later ones the largest difference is told.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cifar10_accel.children import refuse_launcher, run_child
from cifar10_accel.errors import SettingsError
from cifar10_accel.launch import without_auto
from cifar10_accel.processes import flags_of, python_command
from cifar10_accel.settings import Settings

EXACT = ("lr", "indices", "pixels")
CLOSE = ("loss", "gradient_norm")
JUDGED_UPDATES = 3  # the last of them has seen every part of the optimizer's state
# Relative. Measured on CPUs in fp32 in these updates: loss 0 to 7e-7, gradient norm 0 to 9e-4 (1e-7 in the
# first). Batch norm over other pieces moves them by 8e-4 and 1e-2 at least, gradients that are not shared by more.
TOLERANCES = {"loss": 1e-4, "gradient_norm": 1e-2}
# Half precision and TF32 round to 8 to 11 bits, and a GPU may choose another kernel in each process: set
# from that, wide enough for both and below what separates whole batches from pieces. Not measured on GPUs.
COARSE_TOLERANCES = {"loss": 2e-3, "gradient_norm": 2e-2}

Trace = list[dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """How one quantity compares over all updates of two traces."""

    quantity: str
    largest: float  # relative difference of numbers over all updates; inf where other things differ
    largest_early: float  # the same over the first updates, which a tolerance judges
    first_difference: str  # with its update; empty if all are bit-equal
    first_fault: str  # the first difference that may not be; empty if there is none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One trace against another, quantity by quantity."""

    num_processes: int
    pieces: str  # in which the one process that it is compared with took its batches
    tolerances: Mapping[str, float]  # empty if only the exact quantities are judged
    findings: list[Finding]

    @property
    def faults(self) -> list[str]:
        """What differs and may not."""
        pair = f"{self.num_processes} processes against 1 with {self.pieces}"
        return [f"{pair}: {finding.first_fault}" for finding in self.findings if finding.first_fault]


def verify_parallel(
    flags: Mapping[str, Any], *, counts: Sequence[int] | None, num_steps: int, folder: Path
) -> list[Comparison]:
    """Trains the first updates on each number of processes and compares them; traces and logs stay in the folder.

    flags: the settings that were given. counts: numbers of processes; None: 1, 2 and 4 as far as this
    machine and the batch size allow. Raises `SettingsError` if there is nothing to compare.
    """
    refuse_launcher("verify-parallel")
    settings = without_auto(Settings(**flags), on_cpu=not torch.accelerator.is_available())
    several = [count for count in counts or _default_counts(settings) if count > 1]
    _check_counts(several, settings)
    whole = _record(flags, folder, num_processes=1, pieces=settings.grad_accum_steps, num_steps=num_steps)
    comparisons = []
    for count in several:
        pieces = settings.grad_accum_steps
        ran = _record(flags, folder, num_processes=count, pieces=pieces, num_steps=num_steps)
        same_pieces = _record(flags, folder, num_processes=1, pieces=pieces * count, num_steps=num_steps)
        comparisons += [
            compare(ran, same_pieces, pieces=f"{pieces * count} pieces", tolerances=_tolerances(ran)),
            compare(ran, whole, pieces="its own pieces", tolerances={}, exact=_comparable(settings)),
        ]
    return comparisons


def compare(
    found: Trace, expected: Trace, *, pieces: str, tolerances: Mapping[str, float], exact: Sequence[str] = EXACT
) -> Comparison:
    """Compares the trace of several processes with that of one.

    Any difference in the `exact` quantities is a fault; in one with a tolerance, a larger one within the
    first updates.
    """
    pairs = list(zip(found[1:], expected[1:], strict=False))  # without the lines that say how they were launched
    allowed = dict.fromkeys(exact, 0.0) | dict(tolerances)
    findings = [_compare_quantity(name, pairs, allowed.get(name, math.inf)) for name in EXACT + CLOSE]
    if len(found) != len(expected):
        fault = f"{len(found) - 1} updates instead of {len(expected) - 1}"
        findings.append(Finding("updates", math.inf, math.inf, fault, fault))
    return Comparison(num_processes=found[0]["processes"], pieces=pieces, tolerances=tolerances, findings=findings)


def table(comparisons: Sequence[Comparison]) -> Table:
    """One row per comparison: what is equal bit for bit, and how far apart the rest is (relative)."""
    first = f"first {JUDGED_UPDATES}, all"
    result = Table("procs", "vs 1 with", "LR", "images", "pixels", f"loss\n{first}", f"gradient norm\n{first}")
    for comparison in comparisons:
        exact, close = comparison.findings[: len(EXACT)], comparison.findings[len(EXACT) : len(EXACT + CLOSE)]
        cells = ["differ" if finding.first_difference else "equal" for finding in exact]
        cells += [f"{finding.largest_early:.1e}, {finding.largest:.1e}" for finding in close]
        result.add_row(str(comparison.num_processes), comparison.pieces, *cells)
    return result


def explanation(comparisons: Sequence[Comparison]) -> str:
    """What was demanded of the numbers, and why those that differ do."""
    judged = next(comparison.tolerances for comparison in comparisons if comparison.tolerances)
    limits = " and ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in judged.items())
    return (
        "Demanded: the same LR, images and pixels in every update, and in the first "
        f"{JUDGED_UPDATES} updates a relative difference\nof at most {limits} from one process that takes the batch in "
        "the same pieces: its batch norm\nsees the same images, so only the order of sums differs, which each update "
        "makes larger. With its own pieces\nbatch norm sees other images together: that difference is told, not judged."
    )


def read_trace(path: Path) -> Trace:
    """The lines of a file that `cifar10_accel.trace` wrote: how it was launched, then one per update."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _record(flags: Mapping[str, Any], folder: Path, *, num_processes: int, pieces: int, num_steps: int) -> Trace:
    """The trace of a run in a child; it must really have got its processes."""
    name = f"processes-{num_processes}-pieces-{pieces}"
    out, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    given = flags_of({**flags, "grad_accum_steps": pieces})
    arguments = ["-m", "cifar10_accel.trace", "--out", str(out), "--steps", str(num_steps), *given]
    command = python_command(arguments, num_processes=num_processes)
    run_child(command, log=log, doing=f"the run on {num_processes} process{'es' if num_processes > 1 else ''}")
    trace = read_trace(out)
    assert trace[0]["processes"] == num_processes, trace[0]
    return trace


def _compare_quantity(name: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], tolerance: float) -> Finding:
    """Judges every update if the tolerance is 0, else only the first ones."""
    largest, largest_early, first_difference, first_fault = 0.0, 0.0, "", ""
    for found, expected in pairs:
        if found[name] == expected[name]:
            continue
        difference, is_early = _difference(found[name], expected[name]), found["step"] < JUDGED_UPDATES
        words = f"{name} of update {found['step'] + 1} {_contrast(found[name], expected[name])}"
        largest, first_difference = max(largest, difference), first_difference or words
        largest_early = max(largest_early, difference) if is_early else largest_early
        if difference > tolerance and (is_early or tolerance == 0):
            first_fault = first_fault or words
    return Finding(name, largest, largest_early, first_difference, first_fault)


def _difference(found: Any, expected: Any) -> float:
    """Relative difference of two numbers that are not equal; inf for everything else."""
    if not (isinstance(found, float) and isinstance(expected, float)):
        return math.inf
    difference = abs(found - expected) / max(abs(found), abs(expected))
    return difference if math.isfinite(difference) else math.inf


def _contrast(found: Any, expected: Any) -> str:
    if isinstance(found, list):
        places = (at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1])
        place = next(places, None)
        if place is None:
            return f"are {len(found)} images, not {len(expected)}"
        return f"differ: image {place} of the batch is {found[place]}, not {expected[place]}"
    if isinstance(found, str):
        return f"differ: their hash is {found[:12]}, not {expected[:12]}"
    return f"is {found}, not {expected} (relative difference {_difference(found, expected):.1e})"


def _tolerances(trace: Trace) -> dict[str, float]:
    """The tolerances for the device and precision that a trace was made with."""
    is_fine = trace[0]["device"] == "cpu" and trace[0]["precision"] == "fp32"
    return TOLERANCES if is_fine else COARSE_TOLERANCES


def _comparable(settings: Settings) -> Sequence[str]:
    """What does not depend on the pieces a batch is taken in."""
    mixes = settings.mixup_alpha is not None or settings.cutmix_alpha is not None
    return ("lr", "indices") if mixes else EXACT


def _default_counts(settings: Settings) -> list[int]:
    return [count for count in (2, 4) if _can_share(settings, count) and count <= _most_processes()]


def _check_counts(several: Sequence[int], settings: Settings) -> None:
    for count in several:
        if not _can_share(settings, count):
            raise SettingsError(
                f"procs: batch_size {settings.batch_size} cannot be shared by {count} processes x "
                f"{settings.grad_accum_steps} accumulation steps; give another --procs or --batch-size"
            )
        if count > _most_processes():
            raise SettingsError(
                f"procs: {count} processes need as many GPUs, there are {_most_processes():g}; "
                "give fewer, or hide the GPUs to compare on the CPU (CUDA_VISIBLE_DEVICES='')"
            )
    if not several:
        raise SettingsError(
            "procs: there is nothing to compare with one process; give --procs 1,2 "
            "(on a machine with one GPU, hide it to compare on the CPU: CUDA_VISIBLE_DEVICES='')"
        )


def _can_share(settings: Settings, count: int) -> bool:
    return settings.batch_size % (count * settings.grad_accum_steps) == 0


def _most_processes() -> float:
    """One process per GPU; as many as are wanted on a CPU."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else math.inf
