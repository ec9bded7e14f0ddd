"""Memory that the images add to two processes on one machine: `python -m benchmarks.memory`.

Each process loads the data set, of which there is one copy for both, and makes the batches of an epoch of the recipe
resnet9. The data set is CIFAR-10 if it is present (CIFAR10_ACCEL_DATA_DIR), else a synthetic one of the same size.
Measured as proportional set size, which counts half of a page that two processes share for each.
"""

import os
import subprocess
from pathlib import Path

import click
from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.shared_memory import load_dataset_shared
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import python_command
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.setup import RunSetup

PROPORTIONAL = Path("/proc/self/smaps_rollup")


@click.command()
def main() -> None:
    """Measure the memory that two processes need for the images."""
    print_memory()


def print_memory() -> None:
    """Start two processes of this program, which measure themselves."""
    if not PROPORTIONAL.exists():
        print("memory is measured on Linux only")
    elif "WORLD_SIZE" not in os.environ:
        subprocess.run(python_command(["-m", "benchmarks.memory"], num_processes=2), check=True)
    else:
        measure()


def measure() -> None:
    """Print the memory that all processes together have gained by loading and augmenting the images."""
    is_there = Path(os.environ.get("CIFAR10_ACCEL_DATA_DIR", "data")).is_dir()
    settings = Settings(
        recipe="resnet9", dataset="cifar10" if is_there else "synthetic", synthetic_size=50_000, num_threads=1
    )
    accelerator = make_accelerator(settings)
    small = settings.model_copy(update={"dataset": "synthetic", "synthetic_size": 2000})
    make_epoch(small, accelerator)  # imports and first calls are not counted
    before = proportional_megabytes(accelerator)
    dataset = make_epoch(settings, accelerator)
    added = proportional_megabytes(accelerator) - before
    accelerator.print(
        f"memory added by {len(dataset.train):,} {dataset.name} images (and the test set), in all "
        f"{accelerator.num_processes} processes together: {added:,.0f} MB"
    )


def make_epoch(settings: Settings, accelerator: Accelerator) -> Dataset:
    """Load the data set, make the batches of an epoch, and return the data set."""
    dataset = load_dataset_shared(accelerator, settings)
    setup = RunSetup(accelerator, settings, dataset)
    for _ in setup.loader.batches(0, setup.plan.steps_per_epoch):
        pass
    return dataset


def proportional_megabytes(accelerator: Accelerator) -> float:
    """Return the proportional set size of all processes together, in MB."""
    accelerator.wait_for_everyone()
    line = next(line for line in PROPORTIONAL.read_text().splitlines() if line.startswith("Pss:"))
    total: float = sum(gather_object([int(line.split()[1]) / 1024]))
    accelerator.wait_for_everyone()
    return total


if __name__ == "__main__":
    main()
