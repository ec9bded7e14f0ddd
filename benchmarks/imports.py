"""Where the time of importing goes: `python -m benchmarks.imports`. Of the command line, and of a training.

Each is imported in a new process under `-X importtime`, which makes imports slower, so look at the shares. What a
package takes is its own: a package that it imports counts for itself. Files come from the cache of the system, where
the first round puts them. Figures are medians over rounds. Needs no data and no network.
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
    """Show which packages the time of importing goes to."""
    found: dict[str, list[Seconds]] = {title: [] for title in IMPORTED}
    for _ in range(rounds):
        for title, module in IMPORTED.items():
            found[title].append(own_seconds(import_times(module)))
    print(describe_machine("accelerate"))
    for title, measured in found.items():
        print_table(title, measured, top=top)


def import_times(module: str) -> str:
    """What Python prints about importing this module in a new process; ends this program if that fails."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"import {module} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stderr


def own_seconds(text: str) -> Seconds:
    """Seconds by package, from lines such as `import time:  self [us] |  cumulative |  package.module`."""
    seconds: Seconds = defaultdict(float)
    for line in text.splitlines():
        own, _, rest = line.removeprefix(PREFIX).partition("|")
        if line.startswith(PREFIX) and own.strip().isdecimal():  # not the heading
            name = rest.partition("|")[2].strip().partition(".")[0]
            seconds[STANDARD_LIBRARY if name in sys.stdlib_module_names else name] += int(own) / 1e6
    return seconds


def print_table(title: str, measured: list[Seconds], *, top: int) -> None:
    """The packages that take longest, each with its share, then all others together."""
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
