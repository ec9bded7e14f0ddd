"""The benchmark of imports: the time of each package, and a measurement."""

import pytest
from click.testing import CliRunner
from training_commands import CHILD_ENVIRONMENT

from benchmarks import imports

PRINTED = """\
import time: self [us] | cumulative | imported package
import time:       200 |        200 |     package.inner
a warning between the lines | 7 | package
import time:       300 |        500 |   package
import time:       100 |        100 |     json.decoder
import time:       900 |       1500 | other
"""


def test_the_time_of_a_package_excludes_its_imports() -> None:
    seconds = imports.own_seconds(PRINTED)
    assert seconds == pytest.approx({"package": 0.0005, imports.STANDARD_LIBRARY: 0.0001, "other": 0.0009})


def test_shares_are_of_all_packages(capsys: pytest.CaptureFixture[str]) -> None:
    imports.print_table("it", [imports.own_seconds(PRINTED)], top=1)
    lines = capsys.readouterr().out.splitlines()
    assert "| other | 0.001 | 60% |" in lines
    assert "| 2 others | 0.001 | 40% |" in lines


def test_a_process_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CHILD_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(imports, "IMPORTED", {"the errors": "cifar10_accel.errors"})
    done = CliRunner().invoke(imports.main, ["--rounds=1"])
    assert done.exit_code == 0, done.output
    assert "| importing for the errors | seconds | share |" in done.output
    assert f"| {imports.STANDARD_LIBRARY} |" in done.output
    assert "| cifar10_accel |" in done.output


def test_a_module_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "IMPORTED", {"nothing": "no_such_module"})
    done = CliRunner().invoke(imports.main, ["--rounds=1"])
    assert done.exit_code == 1
    assert "No module named 'no_such_module'" in done.output
