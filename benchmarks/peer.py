"""The peer of `benchmarks.speed94`: airbench94_muon.py of KellerJordan/cifar10-airbench, from a checkout elsewhere.

The script is unchanged except for its number of runs. Its data files are written from our verified copy.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.timed import TimedRun
from cifar10_accel.data.dataset import Split
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import InputError
from cifar10_accel.files import replace_file
from cifar10_accel.settings import Settings

SCRIPT = "airbench94_muon.py"
ITS_RUNS = "range(200)"  # its number of runs, as it stands in the script
COLUMNS = ("run", "epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds")


def prepare(checkout: Path, folder: Path, settings: Settings, *, num_runs: int) -> Path:
    """Copy the script to a working folder and write its data there.

    Args:
        checkout: The repository's folder, or the script.
        folder: The working folder, in which the script has to be run.
        settings: Where our copy of CIFAR-10 is.
        num_runs: Runs that the script makes.

    Returns:
        The copy of the script.

    Raises:
        InputError: The script is missing or is another version, or there is no CIFAR-10.
    """
    source = checkout / SCRIPT if checkout.is_dir() else checkout
    try:
        text = source.read_text()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); give --airbench a checkout of it") from None
    if text.count(ITS_RUNS) != 1:
        raise InputError(f"{source}: {ITS_RUNS} is not in it exactly once; give the {SCRIPT} that reports 2.59 seconds")
    write_data(folder / "cifar10", settings)
    script = folder / SCRIPT
    script.write_text(text.replace(ITS_RUNS, f"range({num_runs})"))
    return script


def read_peer(text: str) -> list[TimedRun]:
    """Return the complete runs in the output of the script, without its warm-up.

    The last row of a run has the epoch 'eval', the total time and, as val_acc, the plain accuracy after the last epoch.
    """
    runs: list[TimedRun] = []
    current, train_seconds = "", 0.0
    for row in read_rows(text):
        current = row["run"] or current
        if row["epoch"] != "eval":
            train_seconds = float(row["time_seconds"])
        elif current != "warmup":
            runs.append(
                TimedRun(
                    plain=float(row["val_acc"]),
                    tta=float(row["tta_val_acc"]),
                    seconds=float(row["time_seconds"]),
                    train_seconds=train_seconds,
                )
            )
    return runs


def read_rows(text: str) -> Iterator[dict[str, str]]:
    """Yield the rows `| run | epoch | ... |` in the output of the script; only the first of a run has its number."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == len(COLUMNS) + 2 and cells[1] != COLUMNS[0]:  # a row begins and ends with a bar
            yield dict(zip(COLUMNS, cells[1:-1], strict=True))


def write_data(folder: Path, settings: Settings, *, num_train: int | None = None, num_test: int | None = None) -> None:
    """Write train.pt and test.pt in the format that the script writes after a download.

    Args:
        folder: Of the two files; those that exist are kept.
        settings: Where our copy of CIFAR-10 is.
        num_train: Training images to write, the first ones; None: all.
        num_test: Test images to write, the first ones; None: all.

    Raises:
        InputError: There is no CIFAR-10.
    """
    if (folder / "test.pt").exists():
        return
    dataset = load_dataset(settings.model_copy(update={"val_size": 0}), seed=0)
    if dataset.name != "cifar10":
        raise InputError(
            f"dataset: {dataset.name} is not the data set of {SCRIPT}; give --data-dir with CIFAR-10 in it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, split, num_images in (("train", dataset.train, num_train), ("test", dataset.test, num_test)):
        with replace_file(folder / f"{name}.pt") as file:
            torch.save(_as_saved(split, dataset.class_names, num_images), file)


def _as_saved(split: Split, class_names: tuple[str, ...], num_images: int | None) -> dict[str, object]:
    return {
        "images": torch.from_numpy(split.images)[:num_images].clone(),  # (N, 32, 32, 3) uint8
        "labels": torch.from_numpy(split.labels)[:num_images].clone(),  # a view would be saved whole
        "classes": list(class_names),
    }
