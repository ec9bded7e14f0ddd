"""Whether a training that is killed at random moments ends with the bits of one that is not, on this machine.

The killed run gets SIGKILL, which no process can handle, at a random time after a random update was
logged (so also while a checkpoint is being written), and is started again by the same command.
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

from cifar10_accel import checkpoint
from cifar10_accel.children import refuse_launcher, require_success, run_child
from cifar10_accel.dynamics import Dynamics
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.metrics_log import read_metrics
from cifar10_accel.processes import flags_of, running, training_command
from cifar10_accel.run_folder import RunFolder
from cifar10_accel.settings import Settings

POLL_SECONDS = 0.005
Leaves = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One thing that was compared: how many values it has, and the first that differs (empty if none does)."""

    what: str
    num_values: int
    first_difference: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    rows: list[Row]
    kills: list[int]  # the updates done when each kill struck
    wanted_kills: int
    seconds: dict[str, float]  # of training, by kind of run

    @property
    def faults(self) -> list[str]:
        """What is not as promised."""
        found = [f"{row.what}: {row.first_difference}" for row in self.rows if row.first_difference]
        missed = self.wanted_kills - len(self.kills)
        return found + ([f"{missed} kill(s) came after the end of the run: take a longer one"] if missed else [])


def verify_resume(
    flags: Mapping[str, Any], *, num_kills: int, seed: int, folder: Path, say: Callable[[str], None]
) -> Outcome:
    """Trains straight and killed, and compares what the two leave; the run folders stay in `folder`.

    flags: the settings that were given. On a GPU both runs use deterministic kernels, and a third shows
    what these cost. Raises `SettingsError` if the run has too few updates for that many kills.
    """
    refuse_launcher("verify-resume")
    Settings(**flags)
    given = {**flags, "tracker": "none", "log_every": 1, "run_name": None}
    costs = torch.accelerator.is_available() and "deterministic" not in flags
    seconds = {}
    if costs:
        seconds["as given"] = _train(given, folder / "as-given", say)
        given["deterministic"] = True
    seconds["straight"] = _train(given, folder / "straight", say)
    num_steps = last_step(folder / "straight" / "metrics.jsonl")
    moments = kill_moments(num_kills, num_steps=num_steps, step_seconds=seconds["straight"] / num_steps, seed=seed)
    kills = _train_killed(given, folder / "killed", moments, say)
    seconds["killed"] = _train(given, folder / "killed", say)
    rows = compare(RunFolder(folder / "straight"), RunFolder(folder / "killed"))
    return Outcome(rows=rows, kills=kills, wanted_kills=num_kills, seconds=seconds)


def kill_moments(num_kills: int, *, num_steps: int, step_seconds: float, seed: int) -> list[tuple[int, float]]:
    """For each kill the update to wait for, in ascending order, and the seconds to wait after it is logged."""
    if num_kills >= num_steps:
        raise SettingsError(f"kills: {num_kills} in a run of {num_steps} updates; give fewer --kills or more --epochs")
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, num_steps), num_kills))
    return [(step, draw.uniform(0, 2 * step_seconds)) for step in steps]


def compare(straight: RunFolder, killed: RunFolder) -> list[Row]:
    """Everything that two finished runs leave, bit for bit, but for what measures time."""
    one, other = (_newest(folder) for folder in (straight, killed))
    rows = [_row("weights", one.model, other.model)]
    if one.average is not None or other.average is not None:
        rows.append(_row("averaged weights", one.average or {}, other.average or {}))
    rows.append(_row("optimizer state", _untimed(one.training), _untimed(other.training)))
    lines = [[_untimed(line) for line in read_metrics(folder.metrics)] for folder in (straight, killed)]
    rows.append(_row("training dynamics", _recorded(straight), _recorded(killed)))
    return [*rows, _row("metrics.jsonl", *lines)]


def table(outcome: Outcome) -> Table:
    """What was compared, and whether it is the same."""
    result = Table("compared", "values", "result")
    for row in outcome.rows:
        result.add_row(row.what, f"{row.num_values:,}", row.first_difference or "the same bits")
    return result


def explanation(outcome: Outcome) -> str:
    """The kills, and what the runs took."""
    struck = ", ".join(map(str, outcome.kills)) or "none"
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.seconds.items())
    cost = ""
    if "as given" in outcome.seconds:
        ratio = outcome.seconds["straight"] / outcome.seconds["as given"]
        cost = f"\ndeterministic kernels took {ratio:.2f} times as long as those chosen by speed"
    return f"killed -9 after updates {struck}; training took: {took}{cost}"


def last_step(metrics: Path) -> int:
    """The updates done at the last whole line of a metrics.jsonl that may be being written; 0 if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 10_000))
            whole = file.read().split(b"\n")[:-1]
        return int(json.loads(whole[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def _train(settings: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> float:
    """Trains to the end; the seconds of training that the run counted."""
    log = run_dir.with_suffix(".log")
    run_child(_command(settings, run_dir), log=log, doing=f"the {run_dir.name} run")
    seconds = float(RunFolder(run_dir).read_json("summary.json")["train_seconds"])
    say(f"{run_dir.name} run: finished, {seconds:.1f} s of training")
    return seconds


def _train_killed(
    settings: Mapping[str, Any], run_dir: Path, moments: Sequence[tuple[int, float]], say: Callable[[str], None]
) -> list[int]:
    """Starts the training once for each kill; returns the updates that were logged when each one struck."""
    kills: list[int] = []
    log, metrics = run_dir.with_suffix(".log"), run_dir / "metrics.jsonl"
    for step, delay in moments:
        # Lines of the process before may be there already: this one must have done something new.
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
        say(f"killed -9 after update {kills[-1]} was logged ({_newest_name(run_dir)})")
    return kills


def _command(settings: Mapping[str, Any], run_dir: Path) -> list[str]:
    return training_command(flags_of({**settings, "run_dir": run_dir}), num_processes=1)


def _newest_name(run_dir: Path) -> str:
    """What the next start will find: the newest checkpoint, and whether a save was cut off."""
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))
    whole = [name for name in names if "." not in name]
    cut_off = ", in the middle of a save" if len(names) > len(whole) else ""
    return (f"the newest checkpoint is {whole[-1]}" if whole else "no checkpoint yet") + cut_off


def _newest(folder: RunFolder) -> checkpoint.State:
    path = checkpoint.newest(folder.checkpoints)
    if path is None:
        raise InputError(f"{folder.path}: the run left no checkpoint to compare")
    return checkpoint.load(path)


def _recorded(folder: RunFolder) -> dict[str, torch.Tensor]:
    """The arrays of dynamics.npz; none for a run that finished no epoch."""
    if not folder.dynamics.exists():
        return {}
    record = Dynamics.load(folder.dynamics)
    return {name: torch.from_numpy(getattr(record, name)) for name in record.__dataclass_fields__}


def _untimed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "second" not in name}


def _row(what: str, expected: Any, found: Any) -> Row:
    ours, theirs = dict(_leaves(expected)), dict(_leaves(found))
    num_values = sum(leaf.numel() if isinstance(leaf, torch.Tensor) else 1 for leaf in ours.values())
    missing = sorted(ours.keys() ^ theirs.keys())
    if missing:
        return Row(what, num_values, f"only one run has {missing[0]}")
    differing = next((name for name in ours if not _same_bits(ours[name], theirs[name])), None)
    if differing is None:
        return Row(what, num_values, "")
    return Row(what, num_values, f"{differing} differs: {_contrast(ours[differing], theirs[differing])}")


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value in nested mappings and lists, each with its path."""
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
        return type(one) is type(other) and repr(one) == repr(other)  # the shortest words that give a float back
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*raw)


def _contrast(one: Any, other: Any) -> str:
    if isinstance(one, torch.Tensor) and one.shape == other.shape:
        return f"by up to {(one.double() - other.double()).abs().max():.2g} in {int((one != other).sum())} values"
    return f"{other} instead of {one}"
