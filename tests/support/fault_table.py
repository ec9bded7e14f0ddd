"""Table of faults, printed after the tests: the fault, the expected result and whether it occurred.

A test opens `with fault("what", expected="...", code=N) as ended:` around each fault and adds to the sums below the
table with `count`. Both are properties of the test's report, so the table is the same with and without xdist.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

Ended = Callable[..., None]
OpenFault = Callable[..., AbstractContextManager[Ended]]
Count = Callable[[str, int], None]
Straight = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FaultTable(), "fault-table")


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> OpenFault:
    """Context of one fault, a row of the table; yields a function that checks the end of a process."""

    @contextmanager
    def opened(what: str, *, expected: str, code: int | str = "-") -> Iterator[Ended]:
        def ended(done: Any, *words: str) -> None:
            """Assert the exit code, that every word is on stderr or stdout, and that there is no traceback."""
            assert done.returncode == code, (done.returncode, done.stderr)
            assert "Traceback" not in done.stderr, done.stderr
            for word in words:
                assert word in done.stderr + (done.stdout or ""), (word, done.stderr)

        has_passed = False
        try:
            yield ended
            has_passed = True
        finally:
            record_property("fault", json.dumps([what, expected, str(code), has_passed]))

    return opened


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Add to one of the sums below the table, e.g. `count("kills", 1)`."""
    return lambda what, number: record_property("count", json.dumps([what, number]))


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Function that returns the folder of an uninterrupted run, trained once for all tests and xdist workers."""
    from training_commands import flags, run_python

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def trained(settings: dict[str, Any], *, num_processes: int = 1) -> Path:
        name = hashlib.sha256(f"{settings} {num_processes}".encode()).hexdigest()[:8]
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name / "summary.json").exists():
                args = flags(settings | {"run_dir": name})
                done = run_python("-m", "cifar10_accel.train", *args, cwd=shared, num_processes=num_processes)
                assert done.returncode == 0, done.stderr
        return shared / name

    return trained


class FaultTable:
    """Pytest plugin that collects rows and sums from the reports of all processes."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []
        self.sums: Counter[str] = Counter()
        self.known: dict[str, str] = {}  # tests that are expected to fail, and why

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and hasattr(report, "wasxfail"):
            self.known[report.nodeid] = report.wasxfail
        if report.when != "teardown":
            return
        for name, value in report.user_properties:
            if name == "fault":
                what, expected, code, has_passed = json.loads(str(value))
                failed = "not yet" if report.nodeid in self.known else "FAILED"
                self.rows.append((what, expected, code, "passed" if has_passed else failed))
            elif name == "count":
                what, number = json.loads(str(value))
                self.sums[what] += number

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.rows:
            return
        terminalreporter.section("table of faults")
        table = [("fault", "expected", "exit code", "result"), *sorted(self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            terminalreporter.line("  ".join(cells).rstrip())
        passed = sum(result == "passed" for *_, result in self.rows)
        counted = "".join(f", {number:,} {what}" for what, number in sorted(self.sums.items()))
        terminalreporter.line(f"{passed} of {len(self.rows)} faults as expected{counted}")
