"""The folder of a run: what is in it, who may write to it, and whether the same run may go on there.

settings.yaml  environment.json  status.json  metrics.jsonl  summary.json  report.html
predictions.npz  val_predictions.npz (with a hold-out)  dynamics.npz
misclassified.png  correct.png  confusion.png  curves.png  checkpoints/step-XXXXXX/
robustness.json  robustness.png    (of the command of that name)
wandb/  wandb_run_id  tensorboard/    (of the trackers that are used)
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar10_accel import checkpoint
from cifar10_accel.errors import InputError, Preempted, SettingsError, UserError
from cifar10_accel.recipes import read_yaml
from cifar10_accel.settings import Settings

RUNS = Path("runs")
PACKAGES = ("torch", "torchvision", "accelerate", "albumentations", "numpy", "wandb", "pydantic")


class RunFolder:
    """The paths of one run folder, and its small JSON files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.predictions = path / "predictions.npz"
        self.val_predictions = path / "val_predictions.npz"
        self.dynamics = path / "dynamics.npz"
        self.report = path / "report.html"

    @classmethod
    def of(cls, settings: Settings) -> "RunFolder":
        """`run_dir`, or runs/<run_name>, whose default names recipe, data set and settings."""
        name = settings.run_name or f"{Path(settings.recipe).stem}-{settings.dataset}-{settings.fingerprint()}"
        return cls(settings.run_dir or RUNS / name)

    def open(self, settings: Settings) -> None:
        """Makes the folder, or checks that the same run may go on in it. Only the main process may call this.

        Until `status` is left, or the process ends, no second training can open it. Raises `SettingsError` if
        the folder cannot be written, is in use, or holds a run with other settings.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock", timeout=0, is_singleton=True)
            self._lock.acquire()
        except Timeout:
            raise SettingsError(
                f"run_dir: another training is running in {self.path}; give another --run-name"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"run_dir: {self.path} cannot be written ({error.strerror}); give another --run-dir"
            ) from None
        if (self.path / "settings.yaml").exists():
            try:
                self._require_same_math(settings)
            except UserError:
                self._lock.release(force=True)
                raise
        (self.path / "settings.yaml").write_text(settings.to_yaml())

    def settings(self) -> Settings:
        """The settings the run was made with."""
        path = self.path / "settings.yaml"
        if not path.exists():
            raise InputError(f"{self.path}: not a run folder (no settings.yaml); give a folder that training made")
        return Settings(**read_yaml(path))

    @contextmanager
    def status(self, *, is_main: bool) -> Iterator[None]:
        """Context that keeps status.json: running, then finished, preempted or failed with the exit code.

        Leaving it opens the folder to other trainings again. Launchers flatten exit codes to 1; this file does not.
        """
        write = self._write_status if is_main else lambda *_: None
        write("running", None, "")
        try:
            yield
        except Preempted as stop:
            write("preempted", stop.exit_code, str(stop))
            raise
        except UserError as error:
            write("failed", error.exit_code, str(error))
            raise
        except BaseException as error:
            write("failed", 1, f"{type(error).__name__}: {error}")
            raise
        else:
            write("finished", 0, "")
        finally:
            if is_main:
                self._lock.release(force=True)

    def _write_status(self, state: str, exit_code: int | None, reason: str) -> None:
        self.write_json("status.json", {"state": state, "exit_code": exit_code, "reason": reason})

    def name(self) -> str:
        """The folder's own name, also where it is given as '.'."""
        return self.path.resolve().name

    def is_finished(self) -> bool:
        """Whether a training here came to its end."""
        return self.read_json("status.json").get("state") == "finished"

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Replaces a JSON file, so that a reader never sees half of it."""
        aside = self.path / f"{name}.tmp"
        aside.write_text(json.dumps(values, indent=1) + "\n")
        aside.replace(self.path / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """The values in a JSON file of the folder; none if it is not there or not readable."""
        try:
            return dict(json.loads((self.path / name).read_text()))
        except (OSError, ValueError):
            return {}

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a file of the folder; None if it is not there or not readable."""
        try:
            return (self.path / name).read_bytes()
        except OSError:
            return None

    def _require_same_math(self, settings: Settings) -> None:
        before, now = self.settings().math(), settings.math()
        changes = [f"{name} {before[name]} -> {now[name]}" for name in now if before[name] != now[name]]
        if changes:
            raise SettingsError(
                f"run_dir: {self.path} holds a run with other settings ({'; '.join(changes)}); "
                "give another --run-name, or the settings of that run to continue it"
            )


def locate_checkpoint(source: Path) -> tuple[RunFolder, Path]:
    """The run folder and the checkpoint that a path means: a run folder (its newest), or a checkpoint in one.

    Raises `InputError` for a folder that is neither.
    """
    if source.parent.name == "checkpoints":
        return RunFolder(source.parent.parent), source
    run = RunFolder(source)
    newest = checkpoint.newest(run.checkpoints)
    if newest is None:
        raise InputError(
            f"{source}: no checkpoint there; give a run folder that training made, or one of its checkpoints"
        )
    return run, newest


def environment() -> dict[str, Any]:
    """What the numbers of a run may depend on besides its settings: versions, machine, code, command."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "git": _git_state(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> str | None:
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
