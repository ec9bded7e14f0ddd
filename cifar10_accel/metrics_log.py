"""metrics.jsonl, the record of a run that nothing else replaces: one JSON object a line.

Every line has `step` (updates done) and `epoch`, then metrics. A number that is not finite is written
as null, which is valid JSON where NaN is not. A process can be killed at any byte: readers pass over
a half-written line, and a resumed run removes it.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cifar10_accel.errors import InputError, OutOfResourcesError


def append_metrics(path: Path, values: Mapping[str, float], *, step: int, epoch: float) -> None:
    """Appends one line and hands it to the operating system: it outlives a kill of this process.

    Raises `OutOfResourcesError` if it cannot be written.
    """
    record = {"step": step, "epoch": epoch} | {name: _finite(value) for name, value in values.items()}
    with _writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def drop_metrics_after(path: Path, step: int) -> None:
    """Removes the lines of updates after `step`, and broken ones, so that a run resumed there logs none twice.

    Resumed at step 0 means started anew: nothing is kept. The file is replaced as a whole or not at
    all. Raises `OutOfResourcesError` if it cannot be written.
    """
    before = path.read_bytes() if path.exists() else b""
    kept = [line for line in before.splitlines() if step and _parsed(line).get("step", math.inf) <= step]
    after = b"".join(line + b"\n" for line in kept)
    if after == before:
        return
    aside = path.with_suffix(".tmp")
    with _writing(path), aside.open("wb") as file:
        file.write(after)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl in order, a null as nan; lines and values that are no metrics are passed over.

    May be called while the run is writing. Raises `InputError` if there is no such file.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from None
    return [record for line in lines if "step" in (record := _parsed(line))]


def _parsed(line: bytes) -> dict[str, float]:
    """The metrics in a line; none if it is not a whole JSON object."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: _number(value) for name, value in record.items() if _is_metric(value)}


def _is_metric(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutOfResourcesError(
            f"{path}: cannot be written ({error.strerror}); make room there, then the same command continues"
        ) from None
