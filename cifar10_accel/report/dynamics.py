"""Training-images section of a run's page: images that were forgotten, never learned or likely mislabelled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from cifar10_accel.report.charts import bar_chart
from cifar10_accel.report.sprite import Pixels, Sprite, make_sprite
from cifar10_accel.runs.dynamics import Dynamics

MAX_IMAGES = 35  # in each of the two lists; seven fit into a row of a wide page
MAX_MARKS = 48  # in an image's history; with more epochs only every n-th is shown
MAX_BARS = 6  # by number of forgetting events; the last bar includes all higher numbers


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """A training image of the page; `place` is (column, row) in the sprite, None without a picture."""

    place: tuple[int, int] | None
    index: int
    label_name: str
    mistaken_for: str  # most frequent incorrect prediction; empty if there was none
    num_mistaken: int  # epochs with that prediction
    probability: float  # of the label, mean over the epochs
    std: float  # standard deviation over the epochs
    num_forgotten: int
    num_correct: int
    num_seen: int
    history: tuple[bool | None, ...]  # correct in each (or every n-th) epoch; None: not seen in it


def dynamics_context(dynamics: Dynamics, class_names: Sequence[str], images: Pixels | None) -> dict[str, Any]:
    """Return the values that the template shows; images: all of the training split, or None if not available."""
    suspects, forgotten = dynamics.likely_mislabelled(), dynamics.most_forgotten()
    mislabelled, hardest = suspects[:MAX_IMAGES].tolist(), forgotten[:MAX_IMAGES].tolist()
    shown = sorted({*mislabelled, *hardest})
    sprite = make_sprite(images, shown) if images is not None and shown else None
    seen, learned = dynamics.seen.any(axis=0), dynamics.correct.any(axis=0)
    return {
        "num_epochs": len(dynamics.loss),
        "num_seen": int(seen.sum()),
        "num_never_learned": int(dynamics.never_learned().sum()),
        "num_never_forgotten": int((learned & (dynamics.forgetting_events() == 0)).sum()),
        "num_forgotten": len(forgotten),
        "num_mislabelled": len(suspects),
        "events": _events_chart(dynamics),
        "mislabelled": _entries(dynamics, mislabelled, class_names, sprite),
        "hardest": _entries(dynamics, hardest, class_names, sprite),
        "sprite": sprite,
    }


def _events_chart(dynamics: Dynamics) -> Markup:
    """Return the shares of the images by number of forgetting events, and of those that were never learned."""
    learned = dynamics.correct.any(axis=0)
    events = dynamics.forgetting_events()[learned]
    highest = min(int(events.max(initial=0)), MAX_BARS)
    counts = np.bincount(events.clip(None, highest), minlength=1).tolist()
    names = [f"{k} or more times" if k == MAX_BARS else f"{k} times" for k in range(len(counts))]
    names = ["never forgotten", "once", "twice", *names[3:]][: len(counts)]
    names, counts = [*names, "never learned"], [*counts, int(dynamics.never_learned().sum())]
    total = max(1, sum(counts))
    notes = [f"{count:,} images" for count in counts]
    return bar_chart(names, [count / total for count in counts], notes, title="Images by number of forgetting events")


def _entries(
    dynamics: Dynamics, rows: Sequence[int], class_names: Sequence[str], sprite: Sprite | None
) -> list[TrainingImage]:
    mean, std = dynamics.probability()
    stride = math.ceil(len(dynamics.loss) / MAX_MARKS)
    correct, seen = dynamics.correct[:, rows], dynamics.seen[:, rows]
    events, (mistakes, times) = dynamics.forgetting_events(), dynamics.most_frequent_mistake()
    return [
        TrainingImage(
            place=sprite.places.get(row) if sprite else None,
            index=row,
            label_name=class_names[int(dynamics.label[row])],
            mistaken_for=class_names[int(mistakes[row])] if times[row] else "",
            num_mistaken=int(times[row]),
            probability=float(mean[row]),
            std=float(std[row]),
            num_forgotten=int(events[row]),
            num_correct=int(correct[:, k].sum()),
            num_seen=int(seen[:, k].sum()),
            history=tuple(
                is_correct if was_seen else None
                for is_correct, was_seen in zip(correct[::stride, k].tolist(), seen[::stride, k].tolist(), strict=True)
            ),
        )
        for k, row in enumerate(rows)
    ]
