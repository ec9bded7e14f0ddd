"""The piece `checks`: the correctness of everything on a GPU, several checks at a time, each in a process of its own.

A check that has passed is not made again by the next call; remove its file in OUT/checks for that.
"""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import click
import torch

from benchmarks.gpu.check_list import Check, list_checks
from benchmarks.gpu.session import Session, read_json, write_json
from cifar10_accel.errors import Preempted, UserError
from cifar10_accel.subprocesses import python_command, running, terminate, why_failed

LIMIT_SECONDS = 240.0  # for one check
POLL_SECONDS = 0.1
WIDTH = 160  # of a telling line


def run_checks(session: Session) -> None:
    """Make the checks that have not passed yet; print a line for each, and how many passed.

    Raises:
        UserError: A check failed.
    """
    outcomes: dict[str, str] = {}
    for stage in list_checks():
        names = []
        for name, check in stage.items():
            result = read_json(_result(session, name))
            if reason := _reason_to_skip(session, check):
                outcomes[name] = "skipped"
                click.echo(f"skipped ({reason}) {name}")
            elif result.get("outcome") == "PASS" and result.get("conditions") == session.conditions:
                outcomes[name] = "PASS"
                click.echo(f"PASS {name} (before) {result['line']}")
            else:
                names.append(name)
                _result(session, name).unlink(missing_ok=True)
        outcomes |= _run_stage(session, names)
    made = [outcome for outcome in outcomes.values() if outcome != "skipped"]
    passed = made.count("PASS")
    for name, outcome in outcomes.items():
        if outcome == "FAIL":
            click.echo(f"failed: {name}: {read_json(_result(session, name)).get('line', '')[:WIDTH]}")
    click.echo(f"checks: {passed} of {len(made)} passed")
    if missing := made.count("missing"):
        click.echo(f"missing: {missing} checks; the same command continues")
    if passed < len(made):
        raise UserError(f"{len(made) - passed} of {len(made)} checks have not passed")


def _reason_to_skip(session: Session, check: Check) -> str:
    if check.needs_cuda and not torch.cuda.is_available():
        return "needs CUDA"
    return "takes too long for --tiny" if session.is_tiny and not check.in_tiny else ""


@dataclass
class _Child:
    """A process that makes some checks one after another."""

    names: Sequence[str]
    process: "Popen[str]"
    log: Path
    stack: ExitStack
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started

    @property
    def is_over(self) -> bool:
        """True if it has ended, or has to end because it takes too long."""
        return self.process.poll() is not None or self.seconds >= LIMIT_SECONDS * len(self.names)


def _run_stage(session: Session, names: list[str]) -> dict[str, str]:
    """Make these checks, `num_jobs` at a time; return the outcomes by name."""
    outcomes: dict[str, str] = {}
    # A process for each check, so that none can disturb another; few processes where each start counts.
    bundles = (
        [names[first :: session.num_jobs] for first in range(session.num_jobs)]
        if session.is_tiny
        else [[name] for name in names]
    )
    waiting, active = [bundle for bundle in bundles if bundle], list[_Child]()
    try:
        while waiting or active:
            while waiting and len(active) < session.num_jobs:
                if session.seconds_left() < 0:
                    outcomes |= {name: "missing" for bundle in waiting for name in bundle}
                    waiting = []
                    break
                active.append(_start(session, waiting.pop(0)))
            ended = [child for child in active if child.is_over or session.seconds_left() <= 0]
            _end(ended)
            for child in ended:
                active.remove(child)
                outcomes |= {name: _outcome(session, name, child) for name in child.names}
            time.sleep(POLL_SECONDS)
    finally:
        _end(active)
    return outcomes


def _end(children: Sequence[_Child]) -> None:
    """End these processes; all get the signal at once, since each may take a while."""
    for child in children:
        terminate(child.process)
    for child in children:
        child.stack.close()


def _start(session: Session, names: list[str]) -> _Child:
    folder = session.folder("checks")
    log = folder / f"{names[0]}.process.log"
    log.unlink(missing_ok=True)
    threads = {} if session.is_tiny else {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    environment = {"PYTHONUNBUFFERED": "1", **threads}
    command = python_command(["-m", "benchmarks.gpu.checks", session.to_json(), *names], num_processes=1)
    stack = ExitStack()
    return _Child(names, stack.enter_context(running(command, log=log, environment=environment)), log, stack)


def _outcome(session: Session, name: str, child: _Child) -> str:
    """Print the line of a check whose process has ended and return PASS or FAIL; missing if the time was over."""
    result = read_json(_result(session, name))
    if not result and session.seconds_left() <= 0:
        return "missing"
    if not result:
        log = session.folder("checks") / f"{name}.log"
        code = child.process.returncode
        line = f"its process ended, exit code {code}: {why_failed(code, log if log.exists() else child.log)}"
        result = {"outcome": "FAIL", "seconds": child.seconds, "line": line}
        write_json(_result(session, name), result)
    click.echo(f"{result['outcome']} {name} ({result['seconds']:.0f} s) {result['line'][:WIDTH]}")
    return str(result["outcome"])


def _result(session: Session, name: str) -> Path:
    return session.folder("checks") / f"{name}.json"


def main(arguments: Sequence[str]) -> None:
    """Make some checks in this process: the session as JSON, then names. Their output goes to one log each."""
    session = Session.from_json(arguments[0])
    checks = {name: check for stage in list_checks() for name, check in stage.items()}
    for name in arguments[1:]:
        with (session.folder("checks") / f"{name}.log").open("w") as log:
            sys.stdout.flush()
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            write_json(_result(session, name), _made(session, checks[name]))


def _made(session: Session, check: Check) -> dict[str, Any]:
    start, outcome = time.monotonic(), "PASS"
    try:
        line = check.run(session)
    except Preempted:  # the time was over: no result
        raise
    except Exception as error:
        traceback.print_exc()
        outcome, line = "FAIL", f"{type(error).__name__}: {error}"
    line = " ".join(line.split())
    return {"outcome": outcome, "seconds": time.monotonic() - start, "line": line, "conditions": session.conditions}


if __name__ == "__main__":
    from cifar10_accel.cli.logging import show_log_messages

    show_log_messages()
    main(sys.argv[1:])
