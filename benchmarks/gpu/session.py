"""The options of one call of `python -m benchmarks.gpu`, shared by its pieces and by the processes of the checks."""

import gc
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.image_format import CIFAR10_IMAGES
from cifar10_accel.settings import Settings

# The smallest trainings, to see on a CPU that everything runs.
TINY = {
    "dataset": "synthetic",
    "synthetic_size": 200,
    "width": 4,
    "batch_size": 40,
    "eval_batch_size": 40,
    "epochs": 2,
    "num_threads": 1,
    "compile": False,
}
TINY_IMAGES, IMAGES = (200, 40), (50_000, 10_000)  # for training and testing


@dataclass(frozen=True, kw_only=True)
class Session:
    """Options of one call, the place of its results, and the time left."""

    out: Path
    given: dict[str, Any] = field(default_factory=dict)  # settings given as flags
    is_tiny: bool = False
    num_seeds: int | None = None
    num_jobs: int = 8
    airbench: Path | None = None
    deadline: float = float("inf")  # of time.time(), which all processes share

    @property
    def half(self) -> str:
        """The half precision to train with; float32 on a CPU."""
        return "fp16" if torch.cuda.is_available() else "no"

    @property
    def device(self) -> str:
        """The name of the device."""
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions of a result; one of an earlier call is used again if its conditions are the same."""
        given = {name: str(value) for name, value in self.given.items()}
        return {"device": self.device, "tiny": self.is_tiny, "given": given}

    def seconds_left(self) -> float:
        """Return the seconds until the time of this call is over."""
        return self.deadline - time.time()

    def has_time(self, seconds: float) -> bool:
        """Return whether this much time is left; the pieces of `--tiny` need hardly any."""
        return self.seconds_left() > (0 if self.is_tiny else seconds)

    @property
    def warm_up_seconds(self) -> float:
        """The longest time that compiling and choosing kernels may take."""
        return 240.0 if self.given.get("compile_mode") == "max-autotune" else 45.0

    def flags(self, recipe: str, **more: Any) -> dict[str, Any]:
        """Return the settings of a recipe in half precision as keywords; `more` wins over everything."""
        defaults = {"recipe": recipe, "tracker": "none", "precision": self.half}
        return defaults | (TINY if self.is_tiny else {}) | self.given | more

    def settings(self, recipe: str, **more: Any) -> Settings:
        """Return the settings of a recipe."""
        return Settings(**self.flags(recipe, **more))

    def folder(self, name: str) -> Path:
        """Return a folder for the results of one piece, which is made if it is missing."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def to_json(self) -> str:
        """Return the session as JSON, for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Session":
        """Return the session that `to_json` described."""
        values = json.loads(text)
        airbench = values["airbench"]
        return cls(**values | {"out": Path(values["out"]), "airbench": Path(airbench) if airbench else None})


def noise(num_train: int, num_test: int) -> Dataset:
    """Return random images with random labels of ten classes; unlike the synthetic set they cost no time."""
    draw = np.random.default_rng(0)

    def split(num_images: int) -> tuple[Any, Any]:
        images = draw.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
        return images, draw.integers(0, 10, num_images)

    names = [f"class {number}" for number in range(10)]
    return Dataset(
        name="noise", train=split(num_train), test=split(num_test), class_names=names, image_format=CIFAR10_IMAGES
    )


def release_memory() -> None:
    """Forget models, compiled functions and cached GPU memory of what ran before in this process."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def now() -> float:
    """Return the time in seconds, after all work of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a results file; empty if it is missing or unfinished."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a results file."""
    path.write_text(json.dumps(values, default=str) + "\n")
