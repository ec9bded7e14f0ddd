"""The piece `machine`: the GPU, the versions, and what the device does at best."""

import os
import platform
import subprocess
import time
from collections.abc import Callable

import click
import torch

from benchmarks.gpu.session import Session, now
from benchmarks.machine import describe_machine

PACKAGES = (
    "torchvision",
    "accelerate",
    "triton",
    "numpy",
    "scipy",
    "albumentations",
    "opencv-python-headless",
    "pydantic",
    "pydantic-settings",
    "click",
    "rich",
    "safetensors",
    "matplotlib",
    "lightning",
    "transformers",
)
QUERY = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"


def print_machine(session: Session) -> None:
    """Print one line each of versions and hardware, then the table of speeds."""
    click.echo(describe_machine(*PACKAGES))
    click.echo(f"{os.cpu_count()} cores, Python {platform.python_version()}, CUDA {torch.version.cuda}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        click.echo(_describe_gpu())
    size, num_values = (256, 2**16) if session.is_tiny else (8192, 2**28)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    product = _seconds(lambda: matrix @ matrix, times=10)
    source = torch.ones(num_values, device=device)
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), times=20)
    number = torch.zeros(1, device=device)
    launches = 2000
    start = now()
    for _ in range(launches):
        number.add_(1)
    host = time.perf_counter() - start
    both = now() - start
    click.echo(f"\n| {session.device} | |\n|---|---:|")
    click.echo(f"| matrix product, {size}, {dtype} | {2 * size**3 / product / 1e12:.1f} TFLOP/s |")
    click.echo(f"| copy, read and written | {2 * source.nbytes / copy / 1e12:.3f} TB/s |")
    click.echo(f"| launch of a tiny operation, host | {1e6 * host / launches:.1f} us |")
    click.echo(f"| launch of a tiny operation, until the device is done | {1e6 * both / launches:.1f} us |")


def _describe_gpu() -> str:
    properties = torch.cuda.get_device_properties(0)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    line = (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} "
        f"multiprocessors, cuDNN {cudnn}"
    )
    query = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        seen = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return line
    return f"{line}\n{QUERY}: {seen}"


def _seconds(call: Callable[[], object], *, times: int) -> float:
    """Return the seconds of one call, mean over `times`, after three to warm up."""
    for _ in range(3):
        call()
    start = now()
    for _ in range(times):
        call()
    return (now() - start) / times
