"""Bounds of an LR range test in a sweep file: two numbers change, all other characters stay."""

from pathlib import Path

import pytest
import yaml
from training_commands import REPOSITORY, TINY, flags, run_python

from cifar10_accel.errors import SettingsError
from cifar10_accel.sweep.bounds import bounds_around, require_max_lr_bounds, write_max_lr_bounds

HEAD = "method: random\nrun_cap: 3\nmetric: {name: val/accuracy, goal: maximize}\n"
FIXED = "  recipe: {value: smoke}\n  val_size: {value: 40}\n"


def test_two_numbers_change_and_nothing_else(tmp_path: Path) -> None:
    before = (REPOSITORY / "sweeps" / "onecycle.yaml").read_text()
    path = tmp_path / "sweep.yaml"
    path.write_text(before)
    assert write_max_lr_bounds(path, steepest=0.0369, lowest=1.234) == ("0.012", "1.2")
    changed = [
        (old, new) for old, new in zip(before.splitlines(), path.read_text().splitlines(), strict=True) if old != new
    ]
    assert changed == [("    min: 0.02", "    min: 0.012"), ("    max: 2.0", "    max: 1.2")]
    assert list(tmp_path.iterdir()) == [path]


def test_flow_style_line_ends_and_small_numbers_survive(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    line = "  max_lr: {max: 1, min: 0.5, distribution: log_uniform_values}  # kept"
    path.write_bytes(f"{HEAD}parameters:\n{line}\n{FIXED}".replace("\n", "\r\n").encode())
    write_max_lr_bounds(path, steepest=0.000_09, lowest=0.01)
    text = path.read_bytes().decode()
    assert "{max: 0.01, min: 3.0e-05, distribution: log_uniform_values}  # kept\r\n" in text
    assert yaml.safe_load(text)["parameters"]["max_lr"]["min"] == 3e-5


def test_the_bounds_around_the_steepest_fall() -> None:
    assert bounds_around(steepest=0.3, lowest=3) == (pytest.approx(0.1), 3)
    assert bounds_around(steepest=300, lowest=5000)[1] == 1000  # the upper bound of the setting


@pytest.mark.parametrize(
    ("max_lr", "message"),
    [
        ("{values: [0.1, 0.2]}", "max_lr has no `min:` and `max:`"),
        ("{distribution: log_uniform, min: -3, max: 0}", "whose bounds are exponents"),
        ("{min: 2.0, max: 1.0}", "is not below"),
    ],
)
def test_a_file_without_such_bounds_is_refused_before_the_test(max_lr: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{HEAD}parameters:\n  max_lr: {max_lr}\n{FIXED}")
    with pytest.raises(SettingsError, match=message):
        require_max_lr_bounds(path)


def test_the_range_test_writes_what_it_found_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{HEAD}parameters:\n  max_lr: {{min: 0.5, max: 0.6}}\n{FIXED}")
    before = path.read_text()
    command = ["-m", "cifar10_accel", "lr-range", *flags(TINY), f"--write-sweep={path}"]
    done = run_python(*command, "--start-lr=1e-9", "--end-lr=1e-8", "--steps=12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{path} is left as it was" in done.stdout
    assert path.read_text() == before
    done = run_python(*command, "--steps=60", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bounds = yaml.safe_load(path.read_text())["parameters"]["max_lr"]
    assert 1e-5 < bounds["min"] < bounds["max"] <= 10
    assert f"max_lr from {bounds['min']} to {bounds['max']}" in done.stdout
