"""Time of the parts of a training step, by events on the GPU around each part; on a CPU by the clock."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

Part = tuple[Any, str, str]  # an object, the name of its function, and the title of what the function does


def phase_milliseconds(parts: Sequence[Part], take_steps: Callable[[int], None], *, steps: int) -> dict[str, float]:
    """Take some steps and return the milliseconds a step that each part takes on the device.

    Args:
        parts: Functions that the steps call; one may be within another.
        take_steps: Takes a number of steps.
        steps: Number of steps.
    """
    marks: dict[str, list[tuple[Any, Any]]] = {title: [] for _, _, title in parts}
    with ExitStack() as stack:
        for owner, name, title in parts:
            stack.enter_context(patch.object(owner, name, _marked(getattr(owner, name), marks[title])))
        take_steps(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {title: sum(_milliseconds(*pair) for pair in pairs) / steps for title, pairs in marks.items()}


def _marked(call: Callable[..., Any], marks: list[tuple[Any, Any]]) -> Callable[..., Any]:
    """Return the function with a mark before and after each call."""

    def marked(*args: Any, **kwargs: Any) -> Any:
        start = _mark()
        result = call(*args, **kwargs)
        marks.append((start, _mark()))
        return result

    return marked


def _mark() -> Any:
    """Return an event that the device reaches after the work so far; on a CPU the time."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _milliseconds(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) if torch.cuda.is_available() else 1e3 * (end - start)
