"""How long one waits for the first sign of life: `python -m benchmarks.startup`. Seconds from the start of a process.

To the end of it: Python alone, `import torch`, `import accelerate`, `cifar10-accel --help` (as `python -m
cifar10_accel`, which is the same), a flag that is refused, a tiny training on synthetic images with its evaluation
and its report. And to the first line of metrics.jsonl in that training, written after its first update. Files come
from the cache of the system, where the first round puts them. The commands take turns; figures are medians over
rounds. Needs no data and no network; runs on a GPU if there is one.
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
from cifar10_accel.processes import flags_of

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
    "recipe": "smoke", "synthetic_size": 400, "width": 4, "batch_size": 50, "epochs": 1, "peak_epoch": 0,
    "log_every": 1, "tracker": "none",
}  # fmt: skip
FIRST_UPDATE = "first update of a tiny training"
WHOLE_RUN = "the whole tiny training, with its report"
POLL_SECONDS = 0.005


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="runs of each command")
def main(rounds: int) -> None:
    """Measure the seconds from the start of a process to its first use."""
    seconds: dict[str, list[float]] = {title: [] for title in (*COMMANDS, FIRST_UPDATE, WHOLE_RUN)}
    for _ in range(rounds):
        for title, (exit_code, arguments) in COMMANDS.items():
            seconds[title].append(time_command(arguments, exit_code))
        first, whole = time_training()
        seconds[FIRST_UPDATE].append(first)
        seconds[WHOLE_RUN].append(whole)
    print(describe_machine("accelerate"))
    print(f"\n| from the start of a process to | seconds | ratio to {TORCH} |\n|---|---:|---:|")
    for title, values in seconds.items():
        print(f"| {title} | {median(values):.2f} | {median(values) / median(seconds[TORCH]):.2f} |")


def time_command(arguments: tuple[str, ...], exit_code: int) -> float:
    """Seconds until it has ended; ends this program unless it ends with that exit code."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    _require(done.returncode == exit_code, arguments, done.stderr)
    return seconds


def time_training() -> tuple[float, float]:
    """Seconds until the first update of the tiny training is logged, and until it has ended, its report written."""
    with tempfile.TemporaryDirectory() as folder:
        run, errors = Path(folder) / "run", Path(folder) / "errors"
        arguments = (*PROGRAM, "train", *flags_of(TINY | {"run_dir": run}))
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
        sys.exit(f"python {' '.join(arguments)} did not end as it should:\n{stderr}")


if __name__ == "__main__":
    main()
