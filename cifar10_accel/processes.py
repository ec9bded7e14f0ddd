"""Trainings in processes of their own: the command that starts one, and its end with everything it started.

Verbs that run trainings (sweep, repeat, verify-*) go through the same command line as a person does, so a
crash, a kill or a leak of one training cannot touch the next, and nothing here imports torch.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 25.0  # for a checkpoint and its evaluation-free exit; torch's launcher itself allows 30


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as command-line flags, in the form in which every value, lists and None too, is read back the same."""
    return [f"--{name.replace('_', '-')}={_as_word(value)}" for name, value in settings.items()]


def training_command(flags: Sequence[str], *, num_processes: int) -> list[str]:
    """The argv that trains with these flags on so many processes of this machine, with this interpreter."""
    return python_command(["-m", "cifar10_accel.train", *flags], num_processes=num_processes)


def python_command(arguments: Sequence[str], *, num_processes: int) -> list[str]:
    """The argv of `python ARGUMENTS`, under torch's launcher if there are to be several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    return [sys.executable, *(launcher if num_processes > 1 else []), *arguments]


@contextmanager
def running(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Context of a started command: a process group of its own, output appended to `log`, no standard input.

    Leaving it ends what still runs (`end`). The command gets SIGTERM too if this process is killed, so
    enter it in the main thread: Linux ties that to the thread that started the child.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True,
            env=os.environ | environment, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
        try:
            yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> int:
    """Signals the whole process group and waits; what is left after 25 s is killed. Returns the exit code."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _as_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _die_with_parent() -> None:
    """In the child, before the command: a parent that is killed cannot end what it started."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
