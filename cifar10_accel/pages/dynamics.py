"""The part of a run's page that shows what happened to the training images: forgotten, never learned, doubted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from cifar10_accel.dynamics import Dynamics
from cifar10_accel.pages.charts import bars
from cifar10_accel.pages.sprite import Pixels, Sprite, sprite

MOST_IMAGES = 36  # of each kind
MOST_MARKS = 48  # of a history; of more epochs, every so many
MOST_BARS = 6  # of numbers of forgetting events; the last stands for all that are higher


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training image of the page; `place` is (column, row) in the sprite, None without a picture."""

    place: tuple[int, int] | None
    index: int
    name: str  # of its label
    answer: str  # what it was taken for most often; empty if it was always right
    times: int  # epochs in which it was
    share: float  # the mean probability of the label
    spread: float  # its standard deviation
    forgotten: int
    times_right: int
    times_seen: int
    history: tuple[bool | None, ...]  # right in each epoch, or every so many; None: not in it


def of_dynamics(found: Dynamics, class_names: Sequence[str], images: Pixels | None) -> dict[str, Any]:
    """What the template shows; images: all of the training split, or None where they are not at hand."""
    suspects, forgotten = found.likely_mislabelled(), found.most_forgotten()
    doubted, hardest = suspects[:MOST_IMAGES].tolist(), forgotten[:MOST_IMAGES].tolist()
    pictures = sprite(images, sorted({*doubted, *hardest})) if images is not None and doubted + hardest else None
    seen, learned = found.seen.any(axis=0), found.right.any(axis=0)
    return {
        "num_epochs": len(found.loss),
        "num_seen": int(seen.sum()),
        "num_never_learned": int(found.never_learned().sum()),
        "num_never_forgotten": int((learned & (found.forgetting_events() == 0)).sum()),
        "num_forgotten": len(forgotten),
        "num_doubted": len(suspects),
        "events": _events_chart(found),
        "doubted": _described(found, doubted, class_names, pictures),
        "hardest": _described(found, hardest, class_names, pictures),
        "pictures": pictures,
    }


def _events_chart(found: Dynamics) -> Markup:
    """Shares of the images by number of forgetting events; those never learned have nothing to forget."""
    learned = found.right.any(axis=0)
    events = found.forgetting_events()[learned]
    most = min(int(events.max(initial=0)), MOST_BARS)
    counts = np.bincount(events.clip(None, most), minlength=1).tolist()
    names = [f"{k} or more times" if k == MOST_BARS else f"{k} times" for k in range(len(counts))]
    names = ["never forgotten", "once", "twice", *names[3:]][: len(counts)]
    names, counts = [*names, "never learned"], [*counts, int(found.never_learned().sum())]
    total = max(1, sum(counts))
    notes = [f"{count:,} images" for count in counts]
    return bars(names, [count / total for count in counts], notes, title="How often images were forgotten")


def _described(
    found: Dynamics, rows: Sequence[int], class_names: Sequence[str], pictures: Sprite | None
) -> list[Trained]:
    mean, spread = found.probability()
    stride = math.ceil(len(found.loss) / MOST_MARKS)
    right, seen = found.right[:, rows], found.seen[:, rows]
    events, (answers, times) = found.forgetting_events(), found.usual_answer()
    return [
        Trained(
            place=pictures.places.get(row) if pictures else None,
            index=row,
            name=class_names[int(found.label[row])],
            answer=class_names[int(answers[row])] if times[row] else "",
            times=int(times[row]),
            share=float(mean[row]),
            spread=float(spread[row]),
            forgotten=int(events[row]),
            times_right=int(right[:, k].sum()),
            times_seen=int(seen[:, k].sum()),
            history=tuple(
                is_right if was_seen else None
                for is_right, was_seen in zip(right[::stride, k].tolist(), seen[::stride, k].tolist(), strict=True)
            ),
        )
        for k, row in enumerate(rows)
    ]
