"""torch.compile on a machine that lacks what it needs: one line and exit 3 before the first step, and in doctor."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from training_commands import TINY, flags, run_python

from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.errors import MachineError
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.compilation import require_compiler
from cifar10_accel.training.evaluation import evaluate_split
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import build_state
from cifar10_accel.training.step import train_step

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


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_several_models_of_a_process_are_compiled_once(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training at two image sizes and evaluation, also in half precision, where Accelerate wraps every model anew."""
    graphs: list[list[tuple[int, ...]]] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append([tuple(value.shape) for value in inputs])
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: original(model, backend=count, dynamic=False))
    torch._dynamo.reset()
    settings = Settings(
        recipe="cpu",
        width=4,
        precision=precision,
        num_threads=1,
        compile=True,
        batch_size=10,
        epochs=2,
        eval_batch_size=8,
    )
    numbers: list[int] = []
    for seed in range(3):
        _train_and_evaluate(settings.replace(seed=seed), _images(20))
        numbers.append(len(graphs))
    assert numbers[0] >= 4  # training at two sizes, evaluation, loss
    assert numbers == [numbers[0]] * 3
    assert all(isinstance(side, int) for shapes in graphs for shape in shapes for side in shape)


def test_many_different_models_of_a_process_are_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They share the code of a class, of which torch compiles eight forms by itself."""
    graphs: list[int] = []
    original = torch.compile

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **_: original(model, backend=count, dynamic=False))
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    numbers = []
    for width in range(4, 12, 2):
        settings = TINY | {"compile": True, "width": width, "max_steps": 1, "run_dir": tmp_path / str(width)}
        fit(Settings(**settings))
        numbers.append(len(graphs))
    new = np.diff(numbers)
    assert new.min() >= 2  # training and evaluation
    assert torch._dynamo.config.recompile_limit == limit


def _train_and_evaluate(settings: Settings, dataset: Dataset) -> None:
    setup = RunSetup(make_accelerator(settings), settings, dataset)
    state = build_state(setup)
    for batches in setup.loader.batches(0, settings.epochs * setup.plan.steps_per_epoch):
        train_step(state, batches, lr=0.01)
    evaluate_split(setup.accelerator, state.evaluated_model, dataset.test, batch_size=settings.eval_batch_size)


def _images(number: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(number) % 10)
    return Dataset(name="synthetic", train=split, test=split, class_names=tuple("abcdefghij"))
