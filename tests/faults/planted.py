"""The real training command with one fault planted in it: `python planted.py FAULT[@UPDATE] FLAGS...`.

FAULT@UPDATE happens when that update (counted from 1) is about to be made; FAULT_RANK restricts it to one rank.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from cifar10_accel import checkpoint, train
from cifar10_accel.data.batches import Batch

Batches = list[Batch]
SAVE_PAUSE_SECONDS = 0.2


def nan_pixels(batches: Batches, model: Any) -> Batches:
    """A poisoned image: the loss becomes nan."""
    batches[0].images[0, 0, 0, 0] = float("nan")
    return batches


def inf_gradient(batches: Batches, model: Any) -> Batches:
    """A gradient that overflows while the loss is finite."""
    next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    return batches


def hang(batches: Batches, model: Any) -> Batches:
    """A process that is there and does nothing."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return batches


def slow_save() -> None:
    """Pauses between the files of a checkpoint: time to be killed in."""
    for module, name in ((checkpoint, "save_file"), (checkpoint.torch, "save"), (checkpoint, "_fsync")):
        setattr(module, name, _after_a_pause(getattr(module, name)))


def slow_results() -> None:
    """A long pause between the last checkpoint and the results."""
    train.write_results = _after_a_pause(train.write_results, seconds=60)


def _after_a_pause(function: Callable[..., Any], *, seconds: float = SAVE_PAUSE_SECONDS) -> Callable[..., Any]:
    def paused(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return paused


def plant(fault: Callable[[Batches, Any], Batches], update: int) -> None:
    """Lets the fault happen before one update, on all ranks or on FAULT_RANK."""
    training_batches, build_state = train.training_batches, train.build_state
    states: list[Any] = []

    def remembered(*args: Any, **kwargs: Any) -> Any:
        states.append(build_state(*args, **kwargs))
        return states[-1]

    def faulty(*args: Any, start_step: int, **kwargs: Any) -> Iterator[Batches]:
        for step, batches in enumerate(training_batches(*args, start_step=start_step, **kwargs), start=start_step + 1):
            is_here = os.environ.get("FAULT_RANK", "0") == os.environ.get("RANK", "0")
            yield fault(batches, states[-1].model) if step == update and is_here else batches

    train.build_state, train.training_batches = remembered, faulty


if __name__ == "__main__":
    for name, _, update in (word.partition("@") for word in sys.argv[1].split(",")):
        plant(globals()[name], int(update)) if update else globals()[name]()
    train.main(sys.argv[2:])
