"""Training subprocesses: how they are started, given a share of the machine, ended, and their errors reported.

Commands that train several times (sweep, repeat, verify-*) go through the same command line as a user, so a crash or
a leak of one training cannot touch the next. Nothing here imports torch.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.files import output_of
from cifar10_accel.formatting import format_value

PR_SET_PDEATHSIG = 1
START_MARK = "--- started"  # the line before the output of each start in a log
GRACE_SECONDS = 25.0  # for a checkpoint; torchrun allows its processes 30


def settings_to_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as command-line flags that give the same values back, lists and None included."""
    flags = []
    for name, value in settings.items():
        setting, dot, key = name.partition(".")  # of model_args.num_layers only the setting's name has a spelling
        flags.append(f"--{setting.replace('_', '-')}{dot}{key}={format_value(value)}")
    return flags


def training_command(flags: Sequence[str], *, num_processes: int) -> list[str]:
    """Return the argv that trains with these flags on `num_processes` processes of this machine."""
    return python_command(["-m", "cifar10_accel.train", *flags], num_processes=num_processes)


def python_command(arguments: Sequence[str], *, num_processes: int) -> list[str]:
    """Return the argv of `python ARGUMENTS`, under torchrun if there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    return [sys.executable, *(launcher if num_processes > 1 else []), *arguments]


@contextmanager
def running(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Context of a started command in a process group of its own; leaving the context ends it (`end`).

    Enter it in the main thread: the command gets SIGTERM if this process is killed, and Linux ties that to the thread
    that started it.

    Args:
        command: The argv.
        log: File that standard output and standard error are appended to, after a line with the time.
        environment: Variables to set or replace.
    """
    with _opened_log(log) as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=_terminate_with_parent,
        )
        try:
            yield process
        finally:
            end(process)


def _opened_log(log: Path) -> TextIO:
    """Return the log, opened to append, after a line that marks the start."""
    with output_of(None, log):
        output = log.open("a")
        output.write(f"{START_MARK} {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        output.flush()
    return output


def end(process: "subprocess.Popen[str]") -> int:
    """Send SIGTERM to the whole process group and, after GRACE_SECONDS, SIGKILL. Return the exit code."""
    terminate(process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def terminate(process: "subprocess.Popen[str]") -> None:
    """Send SIGTERM to the whole process group, unless it has ended; do not wait for it."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def require_no_launcher(command: str) -> None:
    """Raise `SettingsError` under a launcher with several processes, for a command that starts processes itself."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(f"launch: {command} starts its own processes; run it without accelerate launch or torchrun")


@contextmanager
def working_folder(wanted: Path | None) -> Iterator[Path]:
    """Context of an empty folder: `wanted`, which is kept, or a temporary one, which is deleted."""
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


def run_to_end(command: list[str], *, log: Path, doing: str, environment: dict[str, str] | None = None) -> None:
    """Run a command to its end; if it fails raise `UserError` with its error message and exit code."""
    with running(command, log=log, environment=environment or {}) as process:
        process.wait()
    require_success(process, log=log, doing=doing)


def require_success(process: "subprocess.Popen[str]", *, log: Path, doing: str) -> None:
    """Raise `UserError` with the error message and exit code of an ended process, unless its exit code is 0."""
    if process.returncode == 0:
        return
    error = UserError(f"{doing} failed: {why_failed(process.returncode, log)} (its whole output: {log})")
    error.exit_code = process.returncode if process.returncode > 0 else 1
    raise error


def why_failed(exit_code: int, log: Path) -> str:
    """Return why a command that `running` has started failed, as one line.

    Args:
        exit_code: Of the process; negative: the signal that ended it.
        log: Its output; only the part since its last start counts.

    Returns:
        The last `error:` line, else the signal, else the last line.
    """
    lines: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith(START_MARK):
            lines.clear()
        elif line.strip():
            lines.append(line.strip())
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if exit_code < 0:
        hint = ", perhaps because memory ran out" if -exit_code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-exit_code).name}{hint}"
    return lines[-1] if lines else f"no output, exit code {exit_code}"


@dataclass(frozen=True, kw_only=True)
class MachineShare:
    """The part of this machine that one of several trainings gets: its GPUs or its CPU threads."""

    environment: dict[str, str]  # CUDA_VISIBLE_DEVICES, if there are GPUs
    num_threads: int | None  # per process; None: as the training decides by itself


def split_machine(num_workers: int | None, *, num_processes: int) -> list[MachineShare]:
    """Split the GPUs, or the CPU cores that this process may use, among trainings that run at the same time.

    Args:
        num_workers: Trainings at a time; None: one per GPU (or per `num_processes` GPUs), one on a CPU. Workers beyond
            the GPUs share them in turn.
        num_processes: Processes of each training.

    Raises:
        SettingsError: One training needs more GPUs than there are.
    """
    gpus = visible_gpus()
    if gpus and num_processes > len(gpus):
        raise SettingsError(
            f"num-processes: {num_processes} for each training, but this machine shows {len(gpus)} GPU(s)"
        )
    count = num_workers or max(1, len(gpus) // num_processes)
    if not gpus:
        # One training divides the cores among its own ranks; several do not know of each other.
        threads = max(1, num_cores() // (count * num_processes)) if count > 1 else None
        return [MachineShare(environment={}, num_threads=threads)] * count
    groups = [
        [gpus[(worker * num_processes + rank) % len(gpus)] for rank in range(num_processes)] for worker in range(count)
    ]
    return [MachineShare(environment={"CUDA_VISIBLE_DEVICES": ",".join(group)}, num_threads=None) for group in groups]


def visible_gpus() -> list[str]:
    """Return the GPUs that a training could use here, as CUDA_VISIBLE_DEVICES names them, without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def num_cores() -> int:
    """Return the CPU cores that this process may use, which a container or Slurm may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _terminate_with_parent() -> None:
    """Make Linux send SIGTERM to this process when its parent dies; called in the child before the command starts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
