"""Why a command that was started failed, as its log tells."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cifar10_accel.errors import UserError
from cifar10_accel.subprocesses import run_to_end

KILLED = "import os, signal; print('7/10  0.41', flush=True); os.kill(os.getpid(), signal.SIG{})"


def failure(code: str, log: Path) -> UserError:
    command: Sequence[str] = [sys.executable, "-c", code]
    with pytest.raises(UserError) as failed:
        run_to_end(list(command), log=log, doing="it")
    return failed.value


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("import sys; print('error: disk full'); print('more'); sys.exit(5)", "disk full", 5),
        (KILLED.format("KILL"), "ended by SIGKILL, perhaps because memory ran out", 1),
        (KILLED.format("SEGV"), "ended by SIGSEGV", 1),
        ("raise KeyError('a')", "KeyError: 'a'", 1),
        ("import sys; sys.exit(4)", "no output, exit code 4", 4),
    ],
)
def test_the_reason_is_that_of_the_last_start(code: str, reason: str, exit_code: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    failure("import sys; print('error: of an earlier start'); sys.exit(3)", log)
    error = failure(code, log)
    assert str(error) == f"it failed: {reason} (its whole output: {log})"
    assert error.exit_code == exit_code
    assert log.read_text().count("--- started 20") == 2
