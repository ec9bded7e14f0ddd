"""Record of what the results of a run depend on besides its settings: machine, versions, code and command."""

import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "accelerate", "albumentations", "numpy", "wandb", "pydantic")


def environment() -> dict[str, Any]:
    """Return the date, machine, versions, code and command, which results may depend on besides the settings."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": platform.node(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "git": _git_state(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _cpu_model() -> str:
    """Return the name of the CPU, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [
        value.strip() for line in lines for name, _, value in [line.partition(":")] if name.strip() == "model name"
    ]
    return next(iter(named), "") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> str | None:
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
