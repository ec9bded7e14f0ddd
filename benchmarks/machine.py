"""Description of the machine and of the versions that a benchmark was run with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe_machine(*packages: str) -> str:
    """Return one line with processor, cores and load, Python, torch, and the versions of some packages."""
    versions = [f"{name} {_version(name)}" for name in ("torch", *packages)]
    return ", ".join([_processor(), f"load {os.getloadavg()[0]:.1f}", f"Python {platform.python_version()}", *versions])


def _processor() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} cores of {model} ({torch.backends.cpu.get_cpu_capability()})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
