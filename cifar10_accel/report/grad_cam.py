"""Grad-CAM section of a run's page: heat maps of the most confident mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar10_accel.report.images import ImageEntry, image_entries
from cifar10_accel.report.sprite import Pixels, make_sprite
from cifar10_accel.runs.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class GradCamImage:
    """A mistake, and the places in the sprite of the image and of its two heat maps."""

    image: ImageEntry
    place: tuple[int, int]
    for_prediction: tuple[int, int]
    for_label: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class GradCamGallery:
    """Images, and the same with the heat maps of their predicted and of their true class: (N, S, S, 3) uint8 each."""

    rows: Sequence[int]  # (N,) of the predictions
    images: Pixels
    for_prediction: Pixels
    for_label: Pixels
    layer: str  # whose feature maps they are
    shape: tuple[int, int]  # of the feature maps
    is_traced: bool  # False: their place in the image is not known, so they are spread evenly over it


def grad_cam_context(gallery: GradCamGallery, test: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the values that the template shows."""
    num_images = len(gallery.rows)
    tiles = np.concatenate([gallery.images, gallery.for_prediction, gallery.for_label])
    sprite = make_sprite(tiles, range(len(tiles)))
    places = sprite.places
    return {
        "sprite": sprite,
        "layer": gallery.layer,
        "shape": gallery.shape,
        "is_traced": gallery.is_traced,
        "entries": [
            GradCamImage(
                image=entry,
                place=places[k],
                for_prediction=places[num_images + k],
                for_label=places[2 * num_images + k],
            )
            for k, entry in enumerate(image_entries(test, gallery.rows, class_names, None))
        ],
    }
