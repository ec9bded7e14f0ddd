"""Completion in the shell: commands, flags and the values of settings."""

import shutil
from pathlib import Path

import pytest
from training_commands import REPOSITORY, run_python

COMPLETED = [
    ("cifar10-accel tr", 1, {"train"}),
    ("cifar10-accel train --tra", 2, {"--tracker"}),
    ("cifar10-accel train --max-l", 2, {"--max-lr"}),  # the form with underscores is not offered too
    ("cifar10-accel train --precision ", 3, {"auto", "no", "fp16", "bf16"}),
    ("cifar10-accel train --model air", 3, {"airbench94", "airbench96"}),
    ("cifar10-accel train --recipe speed", 3, {"speed94"}),
    ("cifar10-accel train --augment crop,cut", 3, {"crop,cutout"}),
    ("cifar10-accel train --compile ", 3, {"true", "false"}),
    ("cifar10-accel doctor --tta f", 3, {"flip"}),
    ("cifar10-accel evaluate run --tta mul", 4, {"multicrop", "multicrop_uncertain"}),
    ("cifar10-accel export run --format on", 4, {"onnx"}),
    ("cifar10-accel repeat --against smo", 3, {"smoke"}),
]


@pytest.mark.parametrize(("words", "index", "expected"), COMPLETED)
def test_the_shell_completes(words: str, index: int, expected: set[str], tmp_path: Path) -> None:
    completed = run_python(
        *("-c", "from cifar10_accel.cli import main; main(prog_name='cifar10-accel')"),
        cwd=tmp_path,
        _CIFAR10_ACCEL_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(index),
    )
    assert {line.split(",", 1)[1] for line in completed.stdout.split()} == expected, completed.stderr


def test_paths_are_completed_as_files(tmp_path: Path) -> None:
    program = ("-c", "from cifar10_accel.cli import main; main(prog_name='cifar10-accel')")
    for words, index in [("cifar10-accel train --data-dir x", 3), ("cifar10-accel evaluate x", 2)]:
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(index), "_CIFAR10_ACCEL_COMPLETE": "bash_complete"}
        assert run_python(*program, cwd=tmp_path, **variables).stdout.startswith("file,")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_switches_it_on(shell: str, tmp_path: Path) -> None:
    """The page has the line of each shell, and its command prints a script for that shell."""
    assert f"_CIFAR10_ACCEL_COMPLETE={shell}_source cifar10-accel" in (REPOSITORY / "docs" / "commands.md").read_text()
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("Click asks bash for its version")
    program = ("-c", "from cifar10_accel.cli import main; main(prog_name='cifar10-accel')")
    done = run_python(*program, cwd=tmp_path, _CIFAR10_ACCEL_COMPLETE=f"{shell}_source")
    assert f"_CIFAR10_ACCEL_COMPLETE={shell}_complete" in done.stdout, done.stderr
