"""The launch: memory that is kept, kernels that are chosen, and what a launch file may not change."""

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from training_commands import TINY, flags, run_python
from trainings import assert_same_bits

from cifar10_accel import CallbackContext, Settings, fit

# Page faults of filling 64 MB (16,384 pages) a second time, before and after.
PROGRAM = """
import resource
import numpy as np
from cifar10_accel import Settings
from cifar10_accel.training.accelerator import make_accelerator

def faults():
    np.ones(64 << 20, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
make_accelerator(Settings(recipe="smoke"))
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    before, after = map(int, run_python("program.py", cwd=tmp_path).stdout.split())
    assert after < 100
    assert before > 10 * max(1, after)


class KernelChoice:
    """A callback that writes down whether only deterministic kernels are used."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_step_end(self, context: CallbackContext) -> None:
        self.seen.append(torch.are_deterministic_algorithms_enabled())


@pytest.mark.parametrize("changes", [{}, {"deterministic": False}, {"deterministic": True}], ids=str)
def test_kernels_are_deterministic_only_if_asked_for(changes: dict[str, Any], tmp_path: Path) -> None:
    choice = KernelChoice()
    fit(Settings(**TINY | {"run_dir": tmp_path / "run", "max_steps": 1} | changes), callbacks=[choice])
    assert choice.seen == [changes.get("deterministic", False)]


def test_variables_of_a_launch_file_do_not_change_the_training(tmp_path: Path) -> None:
    variables = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER",
        "ACCELERATE_GRADIENT_CLIPPING": "0.001",
        "ACCELERATE_DOWNCAST_BF16": "true",
    }
    runs = [tmp_path / "plain", tmp_path / "launched"]
    for run, environment in zip(runs, ({}, variables), strict=True):
        arguments = flags(TINY | {"max_steps": 6, "grad_accum_steps": 2, "precision": "no", "run_dir": run})
        done = run_python("-m", "cifar10_accel.train", *arguments, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
    assert_same_bits(*runs)


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_USE_FSDP": "true"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"ACCELERATE_USE_MEGATRON_LM": "1"},
        {"ACCELERATE_MIXED_PRECISION": "fp8"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_other_engines_are_refused_in_one_line(variables: dict[str, str], tmp_path: Path) -> None:
    done = run_python("-m", "cifar10_accel.train", *flags(TINY), cwd=tmp_path, **variables)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: launch: {next(iter(variables))}")
