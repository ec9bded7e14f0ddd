"""torch.compile on a machine that lacks what it needs: one line and exit 3 before the first step, and in doctor."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from training_commands import TINY, flags, run_python

from cifar10_accel.errors import MachineError
from cifar10_accel.training.compilation import require_compiler

CPU = torch.device("cpu")


def test_a_missing_compiler_is_one_line(tmp_path: Path) -> None:
    torch._dynamo.reset()
    missing = {"cpp.cxx": (None, str(tmp_path / "no-such-compiler"))}
    with torch._inductor.config.patch(missing), pytest.raises(MachineError, match="No working C") as raised:
        require_compiler(CPU)
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)
    assert "--no-compile" in str(raised.value)


@pytest.mark.parametrize("error", [OSError("cannot load libomp.so"), ImportError("triton"), RuntimeError("a\nb\nc")])
def test_whatever_is_missing_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: object) -> object:
        raise error

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(MachineError, match=str(error).splitlines()[0]) as raised:
        require_compiler(CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.long
@pytest.mark.parametrize("command", ["train", "doctor", "lr-range"])
def test_commands_end_with_exit_3(command: str, tmp_path: Path) -> None:
    """PATH has no program at all, as in a small container; the training leaves no metrics."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    args = flags(TINY | {"compile": "true", "run_dir": "run"})
    done = run_python("-m", "cifar10_accel", command, *args, cwd=tmp_path, PATH=str(programs), CXX="g++")
    assert done.returncode == 3, done.stderr
    errors = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "torch.compile does not work on this machine" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.long
def test_a_machine_with_a_compiler_passes() -> None:
    if os.system("g++ --version > /dev/null 2>&1") != 0:
        pytest.skip("there is no g++")
    torch._dynamo.reset()
    require_compiler(CPU)
