"""Substitute for a training in tests of sweeps: the same files, flags, signals and exit codes, without torch.

The accuracy grows with the epoch and is best at max_lr 0.1; above 100 the run fails as a diverged training does. It
continues where its metrics.jsonl ends. FAKE_EPOCH_SECONDS in the environment is the duration of an epoch.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

FLAGS = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
RUN = Path(FLAGS["run-dir"])


def status(state: str, code: int | None, reason: str = "") -> None:
    """Write status.json as a training does."""
    (RUN / "status.json").write_text(json.dumps({"state": state, "exit_code": code, "reason": reason}))


def stop(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM: record the preemption and exit."""
    status("preempted", 128 + number)
    sys.exit(128 + number)


def main() -> None:
    """Run all epochs that are left."""
    signal.signal(signal.SIGTERM, stop)
    status("running", None)
    with (RUN / "pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    (RUN / "environment.json").write_text(json.dumps({"device": "cpu", "threads": 1}))
    max_lr = float(FLAGS["max-lr"])
    if max_lr > 100:
        status("failed", 4, "the loss is nan at update 3")
        sys.exit(4)
    metrics = RUN / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for epoch in range(done + 1, int(FLAGS["epochs"]) + 1):
        time.sleep(float(os.environ.get("FAKE_EPOCH_SECONDS", "0.02")))
        accuracy = epoch / 10 / (1 + abs(math.log10(max_lr / 0.1)))
        with metrics.open("a") as file:
            file.write(json.dumps({"step": epoch, "epoch": epoch, "val/accuracy": accuracy}) + "\n")
    status("finished", 0)


main()
