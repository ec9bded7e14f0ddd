"""The part of a run's page that shows where the net looked when it was most sure and wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar10_accel.pages.images import Shown, shown
from cifar10_accel.pages.sprite import Pixels, sprite
from cifar10_accel.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """A mistake, and the places in the sprite of the image and of its two heat maps."""

    image: Shown
    place: tuple[int, int]
    for_answer: tuple[int, int]
    for_truth: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Some rows of the predictions with (N, 32, 32, 3) uint8 each: the images, and the heat for two classes."""

    rows: Sequence[int]
    images: Pixels
    for_answer: Pixels
    for_truth: Pixels


def of_looks(looks: Looks, test: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """What the template shows."""
    num_images = len(looks.rows)
    sheet = np.concatenate([looks.images, looks.for_answer, looks.for_truth])
    pictures = sprite(sheet, range(len(sheet)))
    places = pictures.places
    return {
        "pictures": pictures,
        "items": [
            LookedAt(
                image=image, place=places[k], for_answer=places[num_images + k], for_truth=places[2 * num_images + k]
            )
            for k, image in enumerate(shown(test, looks.rows, class_names, None))
        ],
    }
