"""Startup time: `python -m benchmarks.startup`. Seconds from the start of a process.

To its end: Python alone, `import torch`, `import accelerate`, `cifar10-accel --help` (as `python -m
cifar10_accel`, which is the same), a flag that is refused, a tiny training on synthetic images with its evaluation
and its report. To the first line of metrics.jsonl in that training, which is written after its first step. After the
first round, files come from the page cache. The commands take turns; figures are medians over rounds. Needs no data
and no network; runs on a GPU if there is one.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click

from benchmarks.machine import describe_machine
from cifar10_accel.subprocesses import settings_to_flags

PYTHON, TORCH = "python -c pass", "python -c 'import torch'"
PROGRAM = ("-m", "cifar10_accel")
COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {  # by title: the exit code to expect, arguments of Python
    PYTHON: (0, ("-c", "pass")),
    TORCH: (0, ("-c", "import torch")),
    "python -c 'import accelerate'": (0, ("-c", "import accelerate")),
    "cifar10-accel --help": (0, (*PROGRAM, "--help")),
    "a refused flag: cifar10-accel train --max-lr=-1": (2, (*PROGRAM, "train", "--max-lr=-1")),
}
TINY = {
    "recipe": "smoke",
    "synthetic_size": 400,
    "width": 4,
    "batch_size": 50,
    "epochs": 1,
    "peak_epoch": 0,
    "log_every": 1,
    "tracker": "none",
}
FIRST_STEP = "first step of a tiny training"
WHOLE_RUN = "the whole tiny training, with its report"
POLL_SECONDS = 0.005


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="runs of each command")
def main(rounds: int) -> None:
    """Measure the seconds from the start of a process to its end, or to its first training step."""
    seconds: dict[str, list[float]] = {title: [] for title in (*COMMANDS, FIRST_STEP, WHOLE_RUN)}
    for _ in range(rounds):
        for title, (exit_code, arguments) in COMMANDS.items():
            seconds[title].append(time_command(arguments, exit_code))
        first, whole = time_training()
        seconds[FIRST_STEP].append(first)
        seconds[WHOLE_RUN].append(whole)
    print(describe_machine("accelerate"))
    print(f"\n| from the start of a process to | seconds | ratio to {TORCH} |\n|---|---:|---:|")
    for title, values in seconds.items():
        print(f"| {title} | {median(values):.2f} | {median(values) / median(seconds[TORCH]):.2f} |")


def time_command(arguments: tuple[str, ...], exit_code: int) -> float:
    """Return the seconds that a command takes; exit if it has another exit code."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    _require(done.returncode == exit_code, arguments, done.stderr)
    return seconds


def time_training() -> tuple[float, float]:
    """Return the seconds until the first step of the tiny training is logged, and until its report is written."""
    with tempfile.TemporaryDirectory() as folder:
        run, errors = Path(folder) / "run", Path(folder) / "errors"
        arguments = (*PROGRAM, "train", *settings_to_flags(TINY | {"run_dir": run}))
        start = time.perf_counter()
        with errors.open("w") as stderr:
            process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=stderr)
        while process.poll() is None and not _has_text(run / "metrics.jsonl"):
            time.sleep(POLL_SECONDS)
        first = time.perf_counter() - start
        process.wait()
        whole = time.perf_counter() - start
        _require(process.returncode == 0 and (run / "report.html").exists(), arguments, errors.read_text())
    return first, whole


def _has_text(path: Path) -> bool:
    return path.exists() and os.path.getsize(path) > 0


def _require(is_as_expected: bool, arguments: tuple[str, ...], stderr: str) -> None:
    if not is_as_expected:
        sys.exit(f"python {' '.join(arguments)} failed:\n{stderr}")


if __name__ == "__main__":
    main()
