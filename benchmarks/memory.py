"""What the data path adds to the memory of two processes on one machine: `python -m benchmarks.memory`.

CIFAR-10 where it is at hand (CIFAR10_ACCEL_DATA_DIR), else a drawn set of its size: loading, which leaves one
copy for both processes, and an epoch's batches of the recipe resnet24. Measured as proportional set size, which
counts a page that two processes share half for each.
"""

import os
import subprocess
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar10_accel.data.batches import BatchPlan, training_batches
from cifar10_accel.data.cifar10 import Dataset
from cifar10_accel.data.shared import load_shared
from cifar10_accel.launch import make_accelerator, training_dtype
from cifar10_accel.processes import python_command
from cifar10_accel.settings import Settings

PROPORTIONAL = Path("/proc/self/smaps_rollup")


def main() -> None:
    """Starts two processes of this program, which measure themselves."""
    if not PROPORTIONAL.exists():
        print("memory is measured on Linux only")
    elif "WORLD_SIZE" not in os.environ:
        subprocess.run(python_command(["-m", "benchmarks.memory"], num_processes=2), check=True)
    else:
        measure()


def measure() -> None:
    """Prints, once, what all processes together have more than before they touched the images."""
    is_there = Path(os.environ.get("CIFAR10_ACCEL_DATA_DIR", "data")).is_dir()
    settings = Settings(
        recipe="resnet24", dataset="cifar10" if is_there else "synthetic", synthetic_size=50_000, num_threads=1
    )
    accelerator = make_accelerator(settings)
    small = settings.model_copy(update={"dataset": "synthetic", "synthetic_size": 2000})
    run_through(small, accelerator)  # what imports and first calls take is not the images'
    before = proportional_megabytes(accelerator)
    dataset = run_through(settings, accelerator)
    added = proportional_megabytes(accelerator) - before
    accelerator.print(
        f"memory added by {len(dataset.train):,} {dataset.name} images (and the test set), in all "
        f"{accelerator.num_processes} processes together: {added:,.0f} MB"
    )


def run_through(settings: Settings, accelerator: Accelerator) -> Dataset:
    """The data set, after the batches of an epoch have been made of it."""
    dataset = load_shared(accelerator, settings)
    plan = BatchPlan.of(settings, accelerator, num_images=len(dataset.train))
    for _ in training_batches(
        dataset.train, plan, settings, start_step=0, stop_step=plan.steps_per_epoch,
        device=accelerator.device, dtype=training_dtype(accelerator),
    ):  # fmt: skip
        pass
    return dataset


def proportional_megabytes(accelerator: Accelerator) -> float:
    """Of all processes together, at one moment."""
    accelerator.wait_for_everyone()
    line = next(line for line in PROPORTIONAL.read_text().splitlines() if line.startswith("Pss:"))
    total: float = sum(gather_object([int(line.split()[1]) / 1024]))
    accelerator.wait_for_everyone()
    return total


if __name__ == "__main__":
    main()
