"""A small run to be tracked, for the tests of tracking."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.settings import Settings
from cifar10_accel.tracking.tracker import Tracker

CONFIG = {"max_lr": 0.4, "augment": ["crop", "flip"], "grad_clip": None, "nesterov": True, "model": "resnet9"}
COLUMNS = ["image", "index", "true", "predicted", "confidence", "loss"]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
ROWS = [[image, index, "cat", "dog", 0.9, 2.5] for index, image in enumerate(IMAGES)]


def tracker_for(run_dir: Path, *, resume_step: int = 0, accelerator: Any = None, **settings: Any) -> Tracker:
    """Return a tracker of the run `first` in a folder, which is created."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return Tracker(
        accelerator or Accelerator(cpu=True),
        Settings(**settings),
        run_dir=run_dir,
        run_name="first",
        config=CONFIG,
        resume_step=resume_step,
    )


def record_run(tracker: Tracker, *, start_step: int = 0) -> float:
    """Log three metrics lines, two tables and a summary; return the seconds it took."""
    started = time.monotonic()
    with tracker:
        for step in range(start_step + 1, start_step + 4):
            tracker.log({"train/loss": 1 / step}, step=step, epoch=step / 4)
        tracker.log_table("misclassified", COLUMNS, ROWS)
        tracker.log_table("correct", COLUMNS, ROWS)
        tracker.log_summary({"test/accuracy": 0.875, "dataset": "synthetic"})
    return time.monotonic() - started


def steps_in(run_dir: Path) -> list[float]:
    """Return the steps in metrics.jsonl."""
    return [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")]
