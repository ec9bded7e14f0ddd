"""Import time by package, of the command line and of a training: `python -m benchmarks.imports`.

Each is imported in a new process under `-X importtime`, which makes imports slower, so only the shares are meaningful.
The time of a package excludes packages that it imports. After the first round, files come from the page cache. Figures
are medians over rounds. Needs no data and no network.
"""

import subprocess
import sys
from collections import defaultdict
from statistics import median

import click

from benchmarks.machine import describe_machine

IMPORTED = {"cifar10-accel --help": "cifar10_accel.cli", "a training": "cifar10_accel.train"}
STANDARD_LIBRARY = "standard library"
PREFIX = "import time:"

Seconds = dict[str, float]  # by package


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="processes for each table")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="packages in each table")
def main(rounds: int, top: int) -> None:
    """Measure the import time of each package."""
    found: dict[str, list[Seconds]] = {title: [] for title in IMPORTED}
    for _ in range(rounds):
        for title, module in IMPORTED.items():
            found[title].append(own_seconds(import_times(module)))
    print(describe_machine("accelerate"))
    for title, measured in found.items():
        print_table(title, measured, top=top)


def import_times(module: str) -> str:
    """Import a module in a new process and return the report of `-X importtime`; exit if that fails."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"import {module} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stderr


def own_seconds(text: str) -> Seconds:
    """Return seconds by package, from lines such as `import time:  self [us] |  cumulative |  package.module`."""
    seconds: Seconds = defaultdict(float)
    for line in text.splitlines():
        own, _, rest = line.removeprefix(PREFIX).partition("|")
        if line.startswith(PREFIX) and own.strip().isdecimal():  # not the heading
            name = rest.partition("|")[2].strip().partition(".")[0]
            seconds[STANDARD_LIBRARY if name in sys.stdlib_module_names else name] += int(own) / 1e6
    return seconds


def print_table(title: str, measured: list[Seconds], *, top: int) -> None:
    """Print the slowest packages, each with its share, then all others together."""
    names = set().union(*measured)
    seconds = {name: median(each.get(name, 0.0) for each in measured) for name in names}
    total = sum(seconds.values())
    shown = sorted(seconds.items(), key=lambda item: -item[1])[:top]
    if len(shown) < len(seconds):
        shown.append((f"{len(seconds) - len(shown)} others", total - sum(value for _, value in shown)))
    print(f"\n| importing for {title} | seconds | share |\n|---|---:|---:|")
    for name, value in shown:
        print(f"| {name} | {value:.3f} | {value / total:.0%} |")
    print(f"| in all | {total:.3f} | 100% |")


if __name__ == "__main__":
    main()
