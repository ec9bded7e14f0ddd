"""Check that a training takes the same steps on 1 and on N processes of this machine.

LR, order and pixels must be bit-equal. Losses cannot be: with N processes batch norm sees N micro-batches of each
batch. One process that takes the batch in the same N micro-batches, by gradient accumulation, computes the same
function, so its loss and gradient norm may differ only by the order of sums. Such a difference grows from step to step
(a ReLU that flips, at a high LR), so a tolerance applies to the first steps only; for all steps the largest difference
is reported.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import python_command, require_no_launcher, run_to_end, settings_to_flags

EXACT = ("lr", "indices", "pixels")
CLOSE = ("loss", "gradient_norm")
JUDGED_STEPS = 3  # the last of them depends on every part of the optimizer's state
# Relative. Measured on CPUs in fp32 in these steps: loss 0 to 7e-7, gradient norm 0 to 9e-4 (1e-7 in the first).
# Batch norm over other micro-batches changes them by at least 8e-4 and 1e-2, gradients that are not averaged by more.
TOLERANCES = {"loss": 1e-4, "gradient_norm": 1e-2}
# Half precision and TF32 round to 8 to 11 bits, and a GPU may choose another kernel in each process. These are wide
# enough for both, and below the difference between whole batches and micro-batches. Not measured on GPUs.
COARSE_TOLERANCES = {"loss": 2e-3, "gradient_norm": 2e-2}

StepLog = list[dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """The comparison of one quantity over all steps of two step logs."""

    quantity: str
    largest: float  # relative difference of numbers over all steps; inf for other values that differ
    largest_early: float  # the same over the first steps, to which a tolerance applies
    first_difference: str  # with its step; empty if all are bit-equal
    first_fault: str  # the first difference that is not allowed; empty if there is none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of two step logs, quantity by quantity."""

    num_processes: int
    micro_batches: str  # of the one process that it is compared with
    tolerances: Mapping[str, float]  # empty if only the exact quantities are judged
    findings: list[Finding]

    @property
    def faults(self) -> list[str]:
        """Differences that are not allowed."""
        pair = f"{self.num_processes} processes against 1 with {self.micro_batches}"
        return [f"{pair}: {finding.first_fault}" for finding in self.findings if finding.first_fault]


def verify_parallel(
    flags: Mapping[str, Any], *, counts: Sequence[int] | None, num_steps: int, folder: Path
) -> list[Comparison]:
    """Take the first steps on each number of processes and compare them.

    Args:
        flags: The settings that were given.
        counts: Numbers of processes; None: 1, 2 and 4 as far as this machine and the batch size allow.
        num_steps: Steps of each run.
        folder: For the step logs and the output of the runs, which are kept.

    Raises:
        SettingsError: There is nothing to compare, or a number of processes is not possible here.
        UserError: A run failed; with its error message.
    """
    require_no_launcher("verify-parallel")
    settings = Settings(**flags).resolve_recipe(on_cpu=not torch.accelerator.is_available())
    several = [count for count in counts or _default_counts(settings) if count > 1]
    _check_counts(several, settings)
    accum = settings.grad_accum_steps
    one = _record(flags, folder, num_processes=1, grad_accum_steps=accum, num_steps=num_steps)
    comparisons = []
    for count in several:
        found = _record(flags, folder, num_processes=count, grad_accum_steps=accum, num_steps=num_steps)
        same = _record(flags, folder, num_processes=1, grad_accum_steps=accum * count, num_steps=num_steps)
        comparisons += [
            compare(found, same, micro_batches=f"{accum * count} micro-batches", tolerances=_tolerances(found)),
            compare(found, one, micro_batches="its own micro-batches", tolerances={}, exact=_comparable(settings)),
        ]
    return comparisons


def compare(
    found: StepLog,
    expected: StepLog,
    *,
    micro_batches: str,
    tolerances: Mapping[str, float],
    exact: Sequence[str] = EXACT,
) -> Comparison:
    """Compare the step log of several processes with that of one.

    Args:
        found: The step log of several processes.
        expected: The step log of one process.
        micro_batches: Those of the one process, for messages.
        tolerances: Relative difference that is allowed in the first steps, by quantity.
        exact: Quantities in which no difference is allowed in any step.
    """
    pairs = list(zip(found[1:], expected[1:], strict=False))  # the first line of each is about the launch
    allowed = dict.fromkeys(exact, 0.0) | dict(tolerances)
    findings = [_compare_quantity(name, pairs, allowed.get(name, math.inf)) for name in EXACT + CLOSE]
    if len(found) != len(expected):
        fault = f"{len(found) - 1} steps instead of {len(expected) - 1}"
        findings.append(Finding("steps", math.inf, math.inf, fault, fault))
    return Comparison(
        num_processes=found[0]["processes"], micro_batches=micro_batches, tolerances=tolerances, findings=findings
    )


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table with one row per comparison: bit-equal or not, or the largest relative differences."""
    first = f"first {JUDGED_STEPS}, all"
    result = Table(
        "procs", "vs 1 with\nmicro-\nbatches", "LR", "images", "pixels", f"loss\n{first}", f"gradient norm\n{first}"
    )
    for comparison in comparisons:
        exact, close = comparison.findings[: len(EXACT)], comparison.findings[len(EXACT) : len(EXACT + CLOSE)]
        cells = ["differ" if finding.first_difference else "equal" for finding in exact]
        cells += [f"{finding.largest_early:.1e}, {finding.largest:.1e}" for finding in close]
        result.add_row(str(comparison.num_processes), comparison.micro_batches.removesuffix(" micro-batches"), *cells)
    return result


def explanation(comparisons: Sequence[Comparison]) -> str:
    """Return which differences are allowed, and why, as text."""
    judged = next(comparison.tolerances for comparison in comparisons if comparison.tolerances)
    limits = " and ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in judged.items())
    return (
        "Required: the same LR, images and pixels in every step, and in the first "
        f"{JUDGED_STEPS} steps a relative difference\nof at most {limits} from one process that takes the batch in "
        "the same micro-batches:\nits batch norm sees the same images, so only the order of sums differs, which each "
        "step makes larger.\nWith its own micro-batches batch norm sees other images together: that difference is "
        "shown, but not checked."
    )


def read_step_log(path: Path) -> StepLog:
    """Return the lines of a file that `step_log.write_step_log` wrote: the launch, then one line per step."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _record(
    flags: Mapping[str, Any], folder: Path, *, num_processes: int, grad_accum_steps: int, num_steps: int
) -> StepLog:
    """Return the step log of a run in processes of its own."""
    name = f"processes-{num_processes}-accum-{grad_accum_steps}"
    out = folder / f"{name}.jsonl"
    given = settings_to_flags({**flags, "grad_accum_steps": grad_accum_steps})
    arguments = ["-m", "cifar10_accel", "step-log", "--out", str(out), "--steps", str(num_steps), *given]
    command = python_command(arguments, num_processes=num_processes)
    run_to_end(
        command,
        log=folder / f"{name}.log",
        doing=f"the run on {num_processes} process{'es' if num_processes > 1 else ''}",
    )
    log = read_step_log(out)
    assert log[0]["processes"] == num_processes, log[0]
    return log


def _compare_quantity(name: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], tolerance: float) -> Finding:
    """Compare one quantity: all steps are judged if the tolerance is 0, else only the first ones."""
    largest, largest_early, first_difference, first_fault = 0.0, 0.0, "", ""
    for found, expected in pairs:
        if found[name] == expected[name]:
            continue
        difference, is_early = _difference(found[name], expected[name]), found["step"] < JUDGED_STEPS
        text = f"{name} of step {found['step'] + 1} {_describe_difference(found[name], expected[name])}"
        largest, first_difference = max(largest, difference), first_difference or text
        largest_early = max(largest_early, difference) if is_early else largest_early
        if difference > tolerance and (is_early or tolerance == 0):
            first_fault = first_fault or text
    return Finding(name, largest, largest_early, first_difference, first_fault)


def _difference(found: Any, expected: Any) -> float:
    """Return the relative difference of two unequal numbers; inf for everything else."""
    if not (isinstance(found, float) and isinstance(expected, float)):
        return math.inf
    difference = abs(found - expected) / max(abs(found), abs(expected))
    return difference if math.isfinite(difference) else math.inf


def _describe_difference(found: Any, expected: Any) -> str:
    if isinstance(found, list):
        places = (at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1])
        place = next(places, None)
        if place is None:
            return f"are {len(found)} images, not {len(expected)}"
        return f"differ: image {place} of the batch is {found[place]}, not {expected[place]}"
    if isinstance(found, str):
        return f"differ: their hash is {found[:12]}, not {expected[:12]}"
    return f"is {found}, not {expected} (relative difference {_difference(found, expected):.1e})"


def _tolerances(log: StepLog) -> dict[str, float]:
    """Return the tolerances for the device and precision of a step log."""
    is_fine = log[0]["device"] == "cpu" and log[0]["precision"] == "fp32"
    return TOLERANCES if is_fine else COARSE_TOLERANCES


def _comparable(settings: Settings) -> Sequence[str]:
    """Return the quantities that must be equal for any micro-batches: MixUp and CutMix mix within a micro-batch."""
    mixes = settings.mixup_alpha is not None or settings.cutmix_alpha is not None
    return ("lr", "indices") if mixes else EXACT


def _default_counts(settings: Settings) -> list[int]:
    return [count for count in (2, 4) if _can_share(settings, count) and count <= _max_processes()]


def _check_counts(several: Sequence[int], settings: Settings) -> None:
    for count in several:
        if not _can_share(settings, count):
            raise SettingsError(
                f"procs: batch_size {settings.batch_size} cannot be shared by {count} processes x "
                f"{settings.grad_accum_steps} accumulation steps; give another --procs or --batch-size"
            )
        if count > _max_processes():
            raise SettingsError(
                f"procs: {count} processes need as many GPUs, there are {_max_processes():g}; "
                "give fewer, or hide the GPUs to compare on the CPU (CUDA_VISIBLE_DEVICES='')"
            )
    if not several:
        raise SettingsError(
            "procs: there is nothing to compare with one process; give --procs 1,2 "
            "(on a machine with one GPU, hide it to compare on the CPU: CUDA_VISIBLE_DEVICES='')"
        )


def _can_share(settings: Settings, count: int) -> bool:
    return settings.batch_size % (count * settings.grad_accum_steps) == 0


def _max_processes() -> float:
    """Return the number of GPUs; infinity on a CPU."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else math.inf
