"""Children of the verbs that train more than once: run to their end, their words in a log, their faults retold."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.processes import running


def refuse_launcher(verb: str) -> None:
    """Raises `SettingsError` inside a launch of several processes: these verbs start the processes themselves."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(f"launch: {verb} starts its own processes; run it without accelerate launch or torchrun")


@contextmanager
def working_folder(wanted: Path | None) -> Iterator[Path]:
    """Context of an empty folder: a temporary one that goes away, or the one wanted, which stays."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="cifar10-accel-") as folder:
            yield Path(folder)
        return
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        if any(wanted.iterdir()):
            raise SettingsError(f"dir: {wanted} is not empty; give a new --dir")
    except OSError as error:
        raise SettingsError(f"dir: {wanted} cannot be used ({error.strerror}); give another --dir") from None
    yield wanted


def run_child(command: list[str], *, log: Path, doing: str, environment: dict[str, str] | None = None) -> None:
    """Runs a command to its end; a `UserError` with its last words and its exit code if it fails."""
    with running(command, log=log, environment=environment or {}) as process:
        process.wait()
    require_success(process, log=log, doing=doing)


def require_success(process: "subprocess.Popen[str]", *, log: Path, doing: str) -> None:
    """Raises a `UserError` with the last words and the exit code of a process that ended, unless it ended well."""
    if process.returncode == 0:
        return
    error = UserError(f"{doing} failed: {last_words(log)} (all it said: {log})")
    error.exit_code = process.returncode if process.returncode > 0 else 1
    raise error


def last_words(log: Path) -> str:
    """The line of a log that says why its process failed: the last `error:` line, else the last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]
