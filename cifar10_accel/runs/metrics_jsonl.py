"""metrics.jsonl, the complete record of a run's metrics: one JSON object per line.

Every line has `step` (steps done) and `epoch`, then metrics. A number that is not finite is written as null, which is
valid JSON where NaN is not. A process can be killed at any byte: readers skip a half-written line, and a resumed run
removes it.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.files import replace_file

OF_FINAL_EVALUATION = "test/class_accuracy/"  # metrics that no evaluation during training has


def append_metrics(path: Path, values: Mapping[str, float], *, step: int, epoch: float) -> None:
    """Append one line and flush it to the operating system, where it survives a kill of this process.

    Raises:
        OutOfResourcesError: It cannot be written.
    """
    record = {"step": step, "epoch": epoch} | {name: _finite(value) for name, value in values.items()}
    with _explain_write_error(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def drop_metrics_after(path: Path, step: int) -> None:
    """Remove what a run that resumes at `step` logs again, and broken lines. The file is replaced atomically.

    These are the lines of later steps, and those from a final evaluation on: a run that was killed between that and its
    end is evaluated again. Nothing is kept for step 0, where the run starts from the beginning.

    Raises:
        OutOfResourcesError: It cannot be written.
    """
    before = path.read_bytes() if path.exists() else b""
    kept = []
    for line in before.splitlines() if step else []:
        record = _parse(line)
        if record.get("step") == step and any(name.startswith(OF_FINAL_EVALUATION) for name in record):
            break
        if record.get("step", math.inf) <= step:
            kept.append(line)
    after = b"".join(line + b"\n" for line in kept)
    if after == before:
        return
    with _explain_write_error(path), replace_file(path) as file:
        file.write(after)


def read_metrics(path: Path, *, containing: str = "", last_bytes: int | None = None) -> list[dict[str, float]]:
    """Return the lines of a metrics.jsonl in order, with null as NaN; other lines and values are skipped.

    May be called while the run is writing.

    Args:
        path: The file.
        containing: Text that a line must contain; other lines are skipped without being parsed, which is much faster.
        last_bytes: Read only the end of the file, of this size; None: all of it.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
            lines = file.read().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from None
    wanted = containing.encode()
    return [record for line in lines if wanted in line and "step" in (record := _parse(line))]


def _parse(line: bytes) -> dict[str, float]:
    """Return the metrics in a line; none if it is not a complete JSON object."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: math.nan if value is None else value for name, value in record.items() if _is_metric(value)}


def _is_metric(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _finite(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


@contextmanager
def _explain_write_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutOfResourcesError(
            f"{path}: cannot be written ({error.strerror}); make room there, then the same command continues"
        ) from None
