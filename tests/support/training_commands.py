"""The smallest training, and commands in subprocesses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent

# Trainings in subprocesses are compared bit for bit, which is guaranteed on a CPU only.
CHILD_ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
# The smallest training that still has several epochs, several steps in each and a hold-out.
TINY = {
    "recipe": "smoke",
    "synthetic_size": 400,
    "val_size": 40,
    "width": 4,
    "batch_size": 60,
    "eval_batch_size": 50,
    "num_threads": 1,
    "epochs": 3,
    "peak_epoch": 1,
    "log_every": 1,
    "tracker": "none",
}


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as command-line flags."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def run_python(*args: str, cwd: Path, num_processes: int = 1, timeout: float = 240, **environment: str) -> Any:
    """Run `python ARGS`, under torchrun for several processes, and return the finished process with its output."""
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(num_processes), "--standalone"]
    return subprocess.run(
        [*launcher, *args],
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | CHILD_ENVIRONMENT | environment,
    )
