"""Check that a training that is killed at random moments ends with the same bits as one that is not.

The killed run gets SIGKILL, which no process can handle, at a random time after a random step was logged (so also
while a checkpoint is being written), and is started again by the same command.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.dynamics import Dynamics
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import (
    require_no_launcher,
    require_success,
    run_to_end,
    running,
    settings_to_flags,
    training_command,
)

POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Row:
    """The comparison of one part of two runs, such as the weights."""

    part: str
    num_values: int
    first_difference: str  # empty if all values are bit-equal


@dataclass(frozen=True, kw_only=True)
class ResumeResult:
    """The comparison of a killed run with one that was not killed."""

    rows: list[Row]
    kills: list[int]  # steps that were logged at the time of each kill
    wanted_kills: int
    seconds: dict[str, float]  # of training, by kind of run

    @property
    def faults(self) -> list[str]:
        """Differences, and kills that did not take place."""
        found = [f"{row.part}: {row.first_difference}" for row in self.rows if row.first_difference]
        missed = self.wanted_kills - len(self.kills)
        return found + ([f"{missed} kill(s) came after the end of the run: take a longer one"] if missed else [])


def verify_resume(
    flags: Mapping[str, Any], *, num_kills: int, seed: int, folder: Path, echo: Callable[[str], None]
) -> ResumeResult:
    """Train once without kills and once with kills, and compare the two run folders.

    On a GPU both runs use deterministic kernels, and a third run without them measures their cost.

    Args:
        flags: The settings that were given.
        num_kills: Times the run is killed.
        seed: Of the moments of the kills.
        folder: For the run folders and logs, which are kept.
        echo: Called with each line of progress.

    Raises:
        SettingsError: The run has too few steps for that many kills.
        UserError: A run failed; with its error message.
    """
    require_no_launcher("verify-resume")
    if Settings(**flags).has_open_length:
        raise SettingsError("time_budget: it could give the two runs other numbers of epochs; give --epochs instead")
    given = {**flags, "tracker": "none", "log_every": 1, "run_name": None}
    costs = torch.accelerator.is_available() and "deterministic" not in flags
    seconds = {}
    if costs:
        seconds["as given"] = _train(given, folder / "as-given", echo)
        given["deterministic"] = True
    seconds["straight"] = _train(given, folder / "straight", echo)
    num_steps = last_step(folder / "straight" / "metrics.jsonl")
    moments = kill_moments(num_kills, num_steps=num_steps, step_seconds=seconds["straight"] / num_steps, seed=seed)
    kills = _train_killed(given, folder / "killed", moments, echo)
    seconds["killed"] = _train(given, folder / "killed", echo)
    rows = compare(RunFolder(folder / "straight"), RunFolder(folder / "killed"))
    return ResumeResult(rows=rows, kills=kills, wanted_kills=num_kills, seconds=seconds)


def kill_moments(num_kills: int, *, num_steps: int, step_seconds: float, seed: int) -> list[tuple[int, float]]:
    """Draw the moments of the kills.

    Returns:
        For each kill the step to wait for, in ascending order, and the seconds to wait after that step is logged.

    Raises:
        SettingsError: There are not more steps than kills.
    """
    if num_kills >= num_steps:
        raise SettingsError(f"kills: {num_kills} in a run of {num_steps} steps; give fewer --kills or more --epochs")
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, num_steps), num_kills))
    return [(step, draw.uniform(0, 2 * step_seconds)) for step in steps]


def compare(straight: RunFolder, killed: RunFolder) -> list[Row]:
    """Compare the folders of two finished runs bit by bit, except for measured times."""
    one, other = (_load_newest(folder) for folder in (straight, killed))
    rows = [_compare_part("weights", one.model, other.model)]
    if one.average is not None or other.average is not None:
        rows.append(_compare_part("averaged weights", one.average or {}, other.average or {}))
    rows.append(_compare_part("optimizer state", _without_times(one.training), _without_times(other.training)))
    lines = [[_without_times(line) for line in read_metrics(folder.metrics)] for folder in (straight, killed)]
    rows.append(_compare_part("training dynamics", _dynamics_arrays(straight), _dynamics_arrays(killed)))
    return [*rows, _compare_part("metrics.jsonl", *lines)]


def table(result: ResumeResult) -> Table:
    """Return a table with one row per compared part."""
    rows = Table("compared", "values", "result")
    for row in result.rows:
        rows.add_row(row.part, f"{row.num_values:,}", row.first_difference or "the same bits")
    return rows


def explanation(result: ResumeResult) -> str:
    """Return the steps of the kills and the training times of the runs, as text."""
    steps = ", ".join(map(str, result.kills)) or "none"
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    cost = ""
    if "as given" in result.seconds:
        ratio = result.seconds["straight"] / result.seconds["as given"]
        cost = f"\ndeterministic kernels took {ratio:.2f} times as long as those chosen by speed"
    return f"killed -9 after steps {steps}; training took: {times}{cost}"


def last_step(metrics: Path) -> int:
    """Return the step of the last complete line of a metrics.jsonl that may be being written; 0 if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 10_000))
            complete = file.read().split(b"\n")[:-1]
        return int(json.loads(complete[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def _train(settings: Mapping[str, Any], run_dir: Path, echo: Callable[[str], None]) -> float:
    """Train to the end; return the seconds of training that the run measured."""
    log = run_dir.with_suffix(".log")
    run_to_end(_command(settings, run_dir), log=log, doing=f"the {run_dir.name} run")
    seconds = float(RunFolder(run_dir).read_json("summary.json")["train_seconds"])
    echo(f"{run_dir.name} run: finished, {seconds:.1f} s of training")
    return seconds


def _train_killed(
    settings: Mapping[str, Any], run_dir: Path, moments: Sequence[tuple[int, float]], echo: Callable[[str], None]
) -> list[int]:
    """Start the training once for each kill; return the steps that were logged at the time of each kill."""
    kills: list[int] = []
    log, metrics = run_dir.with_suffix(".log"), run_dir / "metrics.jsonl"
    for step, delay in moments:
        # Lines of the previous process may be there already: this one must have logged a step of its own.
        step = max(step, last_step(metrics) + 1)
        with running(_command(settings, run_dir), log=log, environment={}) as process:
            while process.poll() is None and last_step(metrics) < step:
                time.sleep(POLL_SECONDS)
            time.sleep(delay)
            if process.poll() is not None:
                require_success(process, log=log, doing="the killed run")
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kills.append(last_step(metrics))
        echo(f"killed -9 after step {kills[-1]} was logged ({_describe_checkpoints(run_dir)})")
    return kills


def _command(settings: Mapping[str, Any], run_dir: Path) -> list[str]:
    return training_command(settings_to_flags({**settings, "run_dir": run_dir}), num_processes=1)


def _describe_checkpoints(run_dir: Path) -> str:
    """Return which checkpoint the next start finds, and whether a save was interrupted, as text."""
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))
    complete = [name for name in names if "." not in name]
    interrupted = ", in the middle of a save" if len(names) > len(complete) else ""
    return (f"the newest checkpoint is {complete[-1]}" if complete else "no checkpoint yet") + interrupted


def _load_newest(folder: RunFolder) -> checkpoint.CheckpointData:
    path = checkpoint.newest(folder.checkpoints)
    if path is None:
        raise InputError(f"{folder.path}: the run has no checkpoint to compare")
    return checkpoint.load(path)


def _dynamics_arrays(folder: RunFolder) -> dict[str, torch.Tensor]:
    """Return the arrays of dynamics.npz; none for a run that finished no epoch."""
    if not folder.dynamics.exists():
        return {}
    record = Dynamics.load(folder.dynamics)
    return {name: torch.from_numpy(getattr(record, name)) for name in record.__dataclass_fields__}


def _without_times(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "second" not in name}


def _compare_part(part: str, expected: Any, found: Any) -> Row:
    ours, theirs = dict(_leaves(expected)), dict(_leaves(found))
    num_values = sum(leaf.numel() if isinstance(leaf, torch.Tensor) else 1 for leaf in ours.values())
    missing = sorted(ours.keys() ^ theirs.keys())
    if missing:
        return Row(part, num_values, f"only one run has {missing[0]}")
    differing = next((name for name in ours if not _same_bits(ours[name], theirs[name])), None)
    if differing is None:
        return Row(part, num_values, "")
    return Row(part, num_values, f"{differing} differs: {_describe_difference(ours[differing], theirs[differing])}")


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor and plain value in nested mappings and lists, each with its path."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        yield name, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _same_bits(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor):
        return type(one) is type(other) and repr(one) == repr(other)  # equal floats have equal text
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*raw)


def _describe_difference(one: Any, other: Any) -> str:
    if isinstance(one, torch.Tensor) and one.shape == other.shape:
        return f"by up to {(one.double() - other.double()).abs().max():.2g} in {int((one != other).sum())} values"
    return f"{other} instead of {one}"
