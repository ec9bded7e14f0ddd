"""Facts about an exported model that another program must know, as text values that fit into any file."""

import json
from typing import Any

from cifar10_accel import __version__
from cifar10_accel.models.classifier import Classifier

ARGUMENTS = ("model_settings", "class_names", "images")  # keys that a Classifier is built from


def metadata(model: Classifier) -> dict[str, str]:
    """Return the facts that every exported file carries: JSON, but for plain sentences.

    `class_names` are in the order of the logits; `images` has size, channels, mean and std. The normalisation with this
    mean and std is part of the model, so a user does not apply it again.
    """
    images = model.image_format
    side, channels = images.size, images.channels
    facts: dict[str, Any] = {
        "model_settings": model.model_settings,
        "class_names": list(model.class_names),
        "images": images.to_json(),
        "input_range": [0.0, 1.0],
        "normalization_is_included": True,
    }
    return {
        "producer": f"cifar10-accel {__version__}",
        "input": f"float32 (N, {channels}, {side}, {side}), {'RGB' if channels == 3 else 'gray'} values in 0..1",
        "output": f"float32 (N, {len(model.class_names)}), logits",
    } | {name: json.dumps(value) for name, value in facts.items()}
