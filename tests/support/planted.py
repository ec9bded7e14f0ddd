"""The real training command with an injected fault: `python planted.py FAULT[@STEP] FLAGS...`.

FAULT@STEP happens before that step (counted from 1) is taken; FAULT_RANK restricts it to one rank.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from cifar10_accel import train
from cifar10_accel.cli import main
from cifar10_accel.data.loader import Batch
from cifar10_accel.runs import checkpoint

Batches = list[Batch]
SAVE_PAUSE_SECONDS = 0.2


def nan_pixels(batches: Batches, model: Any) -> Batches:
    """Set a pixel to nan: the loss becomes nan."""
    batches[0].images[0, 0, 0, 0] = float("nan")
    return batches


def inf_gradient(batches: Batches, model: Any) -> Batches:
    """Make a gradient overflow while the loss is finite."""
    next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    return batches


def hang(batches: Batches, model: Any) -> Batches:
    """Stop the process without ending it."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return batches


def slow_save() -> None:
    """Pause between the files of a checkpoint, as time for a kill."""
    for module, name in ((checkpoint, "save_file"), (checkpoint.torch, "save"), (checkpoint, "_fsync")):
        setattr(module, name, _after_a_pause(getattr(module, name)))


def slow_results() -> None:
    """Pause for long between the last checkpoint and the results."""
    train.write_results = _after_a_pause(train.write_results, seconds=60)


def _after_a_pause(function: Callable[..., Any], *, seconds: float = SAVE_PAUSE_SECONDS) -> Callable[..., Any]:
    def paused(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return paused


def plant(fault: Callable[[Batches, Any], Batches], step: int) -> None:
    """Make the fault happen before one step, on all ranks or on FAULT_RANK."""
    train_step = train.train_step

    def faulty(state: Any, batches: Batches, *, lr: float) -> Any:
        is_here = os.environ.get("FAULT_RANK", "0") == os.environ.get("RANK", "0")
        if state.step + 1 == step and is_here:
            batches = fault(batches, state.wrapped_model)
        return train_step(state, batches, lr=lr)

    train.train_step = faulty


if __name__ == "__main__":
    for name, _, step in (word.partition("@") for word in sys.argv[1].split(",")):
        plant(globals()[name], int(step)) if step else globals()[name]()
    main(["train", *sys.argv[2:]])
