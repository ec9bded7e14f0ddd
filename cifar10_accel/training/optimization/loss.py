"""The loss of the settings: cross-entropy, or a component that is not built in."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10_accel.components import call_component, is_import_path, load_component, user_code
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.settings import OF_BUILT_IN, Settings

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, K) float32 logits and (B,) int64 labels -> mean loss, a scalar


def make_loss(settings: Settings, dataset: Dataset, *, device: torch.device) -> Loss:
    """Return the loss of the settings.

    Raises:
        SettingsError: There is no such loss, a class weight is missing, or a setting was given that it does not take.
        InputError: A loss that is not built in raises, or returns no scalar.
    """
    if is_import_path(settings.loss):
        return _imported_loss(settings, dataset, device=device)
    weights = _class_weights(settings, dataset)
    label_smoothing = settings.label_smoothing
    if weights is None:

        def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

        return cross_entropy

    # Their mean over the training images is one. Divided by the weights of a micro-batch instead, as torch does, the
    # loss would depend on the number of processes and of accumulation steps.
    mean = sum(weights[label] for label in dataset.train.labels.tolist()) / len(dataset.train)
    weight = torch.tensor([value / mean for value in weights], dtype=torch.float32, device=device)

    def weighted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, weight=weight, reduction="none")
        return losses.mean()

    return weighted_cross_entropy


def _class_weights(settings: Settings, dataset: Dataset) -> list[float] | None:
    num_classes = len(dataset.class_names)
    if settings.class_weights == "balanced":
        counts = np.bincount(dataset.train.labels, minlength=num_classes)
        return [float(len(dataset.train) / (num_classes * count)) if count else 0.0 for count in counts]
    if settings.class_weights is not None and len(settings.class_weights) != num_classes:
        raise SettingsError(
            f"class_weights: {len(settings.class_weights)} weights for {num_classes} classes; give one for each, or "
            "balanced"
        )
    return None if settings.class_weights is None else list(settings.class_weights)


def _imported_loss(settings: Settings, dataset: Dataset, *, device: torch.device) -> Loss:
    """Return a function of (logits, labels); a class of such functions is instantiated first."""
    path = settings.loss
    for name in sorted(OF_BUILT_IN["loss"] & settings.model_fields_set):
        raise SettingsError(f"{name}: {path} does not take it; leave it out")
    found: Any = load_component(path, setting="loss")
    if inspect.isclass(found):
        found = call_component(found, dataset.facts(settings), path=path, setting="loss")
    if not callable(found):
        raise InputError(f"loss: {path} is a {type(found).__name__}, not a function of (logits, labels)")
    if isinstance(found, nn.Module):
        found = found.to(device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        with user_code(path, setting="loss"):
            value = found(logits, labels)
        if not isinstance(value, Tensor):
            raise InputError(f"loss: {path} returned a {type(value).__name__}, not a tensor")
        return value.mean()  # of one per image, or of a scalar

    return loss
