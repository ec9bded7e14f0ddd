"""The loss of the settings: cross-entropy, or a component that is not built in."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
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
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
    label_smoothing = settings.label_smoothing

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        if weight is None:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        # torch's own mean divides by the weights of the micro-batch, so it would depend on the number of processes.
        losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, weight=weight, reduction="none")
        return losses.mean()

    return cross_entropy


def _class_weights(settings: Settings, dataset: Dataset) -> npt.NDArray[np.float64] | None:
    """Return the weight of each class, whose mean over the training images is one; None: all are equal."""
    given, num_classes = settings.class_weights, len(dataset.class_names)
    if given is None:
        return None
    if given == "balanced":
        counts = np.bincount(dataset.train.labels, minlength=num_classes)
        weights = np.divide(1.0, counts, out=np.zeros(num_classes), where=counts > 0)
    elif len(given) != num_classes:
        raise SettingsError(
            f"class_weights: {len(given)} weights for {num_classes} classes; give one for each, or balanced"
        )
    else:
        weights = np.asarray(given)
    mean: np.float64 = weights[dataset.train.labels].mean()
    return weights / mean


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
        trained = next((name for name, value in found.named_parameters() if value.requires_grad), None)
        if trained is not None:
            raise SettingsError(
                f"loss: {path} has the parameter {trained!r}, but the optimizer trains the model alone; put it into "
                "the model, or make it a buffer"
            )
        found = found.to(device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        with user_code(path, setting="loss"):
            value = found(logits, labels)
        if not isinstance(value, Tensor):
            raise InputError(f"loss: {path} returned a {type(value).__name__}, not a tensor")
        return value.mean()  # of one per image, or of a scalar

    return loss
