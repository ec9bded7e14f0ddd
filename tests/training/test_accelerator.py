"""Freed memory is kept by the process."""

import platform
from pathlib import Path

import pytest
from training_commands import run_python

# Page faults of filling 64 MB (16,384 pages) a second time, before and after.
PROGRAM = """
import resource
import numpy as np
from cifar10_accel.training.accelerator import _keep_freed_memory

def faults():
    np.ones(64 << 20, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
_keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    before, after = map(int, run_python("program.py", cwd=tmp_path).stdout.split())
    assert after < 100
    assert before > 10 * max(1, after)
