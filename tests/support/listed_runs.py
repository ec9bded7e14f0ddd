"""Run folders as a training leaves them, without a training: for tables and pages of many runs."""

import json
import os
import time
from pathlib import Path
from typing import Any

from cifar10_accel.runs.metrics_jsonl import append_metrics
from cifar10_accel.settings import Settings

EPOCHS = 4


def make_run(path: Path, *, state: str = "finished", age: float = 0.0, **values: Any) -> Path:
    """Write the small files of a run.

    Args:
        path: Its folder.
        state: In status.json; only a finished run has a summary, predictions and a report.
        age: Seconds since its files were written.
        values: Metrics (`test`, `tta`, `val`: accuracies after the last epoch) and settings.
    """
    path.mkdir(parents=True)
    measured = {name: values.pop(name, None) for name in ("test", "tta", "val")}
    settings = {"recipe": "smoke", "dataset": "synthetic", **values}
    (path / "settings.yaml").write_text(Settings(**settings).to_yaml())
    (path / "environment.json").write_text("{}")
    (path / "status.json").write_text(json.dumps({"state": state, "exit_code": 0, "reason": ""}))
    for epoch in range(1, EPOCHS + 1):
        row = {"train/loss": 1 / epoch, "lr": 0.1}
        for split in ("val", "test"):
            if measured[split] is not None:
                row |= {f"{split}/accuracy": measured[split] * epoch / EPOCHS, f"{split}/loss": 1.0}
        append_metrics(path / "metrics.jsonl", row, step=10 * epoch, epoch=epoch)
    if state == "finished":
        names = {"test": "test/accuracy", "tta": "test/accuracy_tta", "val": "val/accuracy"}
        summary = {names[name]: value for name, value in measured.items() if value is not None}
        (path / "summary.json").write_text(json.dumps(summary | {"train_seconds": 61.0}))
        for name in ("predictions.npz", "report.html"):
            (path / name).write_bytes(b"")
    then = time.time() - age
    for file in path.iterdir():
        os.utime(file, (then, then))
    return path
