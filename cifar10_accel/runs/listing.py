"""All runs below a folder, from their small files: fast for thousands of runs, and also while they are written."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from cifar10_accel.errors import FORMER_NAMES, InputError, UserError
from cifar10_accel.formatting import error_line
from cifar10_accel.runs.legacy import RENAMED_SETTINGS
from cifar10_accel.runs.metrics_jsonl import read_metrics

# The parser in C is eight times as fast; PyYAML may have been built without it.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RUN_FILES = {"status.json", "metrics.jsonl", "summary.json"}  # a folder with one of them should have settings, too
STALE_SECONDS = 15 * 60  # a running training writes metrics more often than this
TAIL = 256 * 1024  # bytes at the end of metrics.jsonl that are searched for the latest accuracy
PAGE_KINDS = ("compare", "sweep")
GENERATOR = b'<meta name="generator" content="cifar10-accel'  # near the beginning of every page of this package
FIELDS = ("name", "recipe", "dataset", "model", "seed", "accuracy", "tta", "val", "seconds", "state", "date")


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run as tables show it. Fields that its files do not have yet are None."""

    name: str  # path from the listed folder
    path: Path
    settings: Mapping[str, Any]  # as in settings.yaml
    test: float | None  # accuracy on the test set, 0..1
    tta: float | None  # the same with test-time augmentation
    val: float | None  # accuracy on the hold-out
    seconds: float | None  # of training
    state: str  # running, finished, preempted, failed; stale: running by its status, but silent; or unknown
    reason: str  # of the state
    date: datetime  # local time
    has_report: bool
    has_predictions: bool
    is_listed_folder: bool = False  # True if the listed folder is itself this run

    @property
    def accuracy(self) -> float | None:
        """The accuracy on the test set, or on the hold-out where the run has not been tested."""
        return self.val if self.test is None else self.test

    @property
    def split(self) -> str:
        """The images that `accuracy` was measured on: test or val; empty if there is none."""
        return "test" if self.test is not None else "val" if self.val is not None else ""

    def value(self, name: str) -> Any:
        """Return the value of one of `FIELDS`, or of a setting; None if there is none."""
        if name == "recipe":
            return Path(str(self.settings["recipe"])).stem if "recipe" in self.settings else None
        return getattr(self, name) if name in FIELDS and hasattr(self, name) else self.settings.get(name)


@dataclass(frozen=True)
class Curve:
    """The accuracy of a run over the epochs."""

    split: str  # val for a run with a hold-out, else test
    points: list[tuple[float, float]]  # (epoch, accuracy)


@dataclass(frozen=True, kw_only=True)
class Page:
    """An HTML page of a comparison or a sweep among the runs."""

    name: str  # path from the listed folder
    kind: str  # one of PAGE_KINDS


@dataclass(frozen=True)
class Listing:
    """The runs and pages below a folder; `unreadable` has a sentence for each folder that could not be read."""

    folder: Path
    runs: list[ListedRun] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def list_runs(folder: Path) -> Listing:
    """Find all runs below a folder, in any depth; only their small files are read.

    Args:
        folder: Folder to search; a run folder itself is a listing of one.

    Raises:
        InputError: The folder does not exist or cannot be read.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); give a folder that contains runs") from None
    listing, seen, pending = Listing(folder), set[tuple[int, int]](), [folder]
    while pending:
        path = pending.pop()
        try:
            identity = path.stat()
            if (identity.st_dev, identity.st_ino) not in seen:  # symbolic links may form circles
                seen.add((identity.st_dev, identity.st_ino))
                pending += _visit(path, listing)
        except FileNotFoundError:
            continue  # removed since its parent was read
        except (OSError, UserError) as error:
            listing.unreadable.append(str(error) if isinstance(error, UserError) else f"{path}: {error.strerror}")
    return listing


def read_curve(run: ListedRun) -> Curve:
    """Return the accuracy over the epochs, of the test set or the hold-out, whichever was measured more often."""
    try:
        rows = read_metrics(run.path / "metrics.jsonl", containing='/accuracy"')
    except InputError:
        rows = []
    rows = [row for row in rows if _number(row.get("epoch")) is not None]
    curves = [
        Curve(split, [(row["epoch"], row[name]) for row in rows if _number(row.get(name)) is not None])
        for split, name in (("test", "test/accuracy"), ("val", "val/accuracy"))
    ]
    return max(curves, key=lambda curve: len(curve.points))


def _visit(path: Path, listing: Listing) -> list[Path]:
    """Add the run or the pages in a folder to the listing; return the folders to visit next."""
    with os.scandir(path) as entries:
        found = {entry.name: entry for entry in entries}
    if "settings.yaml" in found:
        listing.runs.append(_read_run(path, listing.folder, names=set(found)))
        return []
    if RUN_FILES & found.keys():
        raise InputError(f"{path}: settings.yaml is missing")
    for name in sorted(found):
        kind = _page_kind(path / name) if name.endswith(".html") else ""
        if kind:
            listing.pages.append(Page(name=_relative(path / name, listing.folder), kind=kind))
    return [path / name for name in sorted(found) if not name.startswith(".") and _is_folder(found[name], listing)]


def _is_folder(entry: os.DirEntry[str], listing: Listing) -> bool:
    """Return whether an entry is a folder; a link that cannot be followed is not, and is noted in the listing."""
    try:
        return entry.is_dir()
    except OSError as error:
        listing.unreadable.append(f"{entry.path}: {error.strerror}")
        return False


def _read_run(path: Path, folder: Path, *, names: set[str]) -> ListedRun:
    settings = _read_settings(path / "settings.yaml")
    summary, status = _read_json(path / "summary.json"), _read_json(path / "status.json")
    test, val = _number(summary.get("test/accuracy")), _number(summary.get("val/accuracy"))
    if test is None and "metrics.jsonl" in names:
        latest = _latest_accuracies(path / "metrics.jsonl")
        test, val = latest.get("test/accuracy"), latest.get("val/accuracy", val)
    return ListedRun(
        name=_relative(path, folder),
        path=path,
        settings=settings,
        test=test,
        tta=_number(summary.get("test/accuracy_tta")),
        val=val,
        seconds=_number(summary.get("train_seconds")),
        state=_state(status.get("state"), path),
        reason=str(status.get("reason") or ""),
        date=_date(path),
        has_report="report.html" in names,
        has_predictions="predictions.npz" in names,
        is_listed_folder=path == folder,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML_LOADER)
    except PermissionError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({error_line(error)})") from None
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path}: has no settings")
    former = {name: FORMER_NAMES.get(str(values.get(name))) for name in RENAMED_SETTINGS}
    present = {name: value for name, value in former.items() if value is not None}
    return {str(name): value for name, value in values.items()} | present


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _number(value: Any) -> float | None:
    """Return a finite number as it is, and None for anything else that a foreign file may have in its place."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _latest_accuracies(path: Path) -> dict[str, float]:
    try:
        rows = read_metrics(path, containing='/accuracy"', last_bytes=TAIL)
    except InputError:
        return {}
    return {name: value for row in rows for name, value in row.items() if _number(value) is not None}


def _state(recorded: Any, path: Path) -> str:
    if recorded not in ("starting", "running"):
        return recorded if isinstance(recorded, str) else "unknown"
    written = max(_modified(path / name) for name in ("status.json", "metrics.jsonl"))
    return recorded if time.time() - written < STALE_SECONDS else "stale"


def _date(path: Path) -> datetime:
    """Return the recorded start of the run, or the time of the last change of its status in a run without one."""
    recorded = _read_json(path / "environment.json").get("date")
    if isinstance(recorded, str):
        try:
            return datetime.fromisoformat(recorded).astimezone()
        except ValueError:
            pass  # damaged
    changed = _modified(path / "status.json") or _modified(path / "settings.yaml")
    return datetime.fromtimestamp(changed).astimezone()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _page_kind(path: Path) -> str:
    """Return the kind of a page that this package wrote; empty for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
            content = file.read() if GENERATOR in head else b""  # the kind comes after styles and images
    except OSError:
        return ""
    eyebrows = {kind: f'<p class="eyebrow">cifar10-accel {kind}'.encode() for kind in PAGE_KINDS}
    return next((kind for kind, eyebrow in eyebrows.items() if eyebrow in content), "")


def _relative(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return path.resolve().name if name == "." else name
