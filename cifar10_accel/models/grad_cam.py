"""Grad-CAM: the regions of an image that raise the score of a class, for any model that ends in feature maps.

Computed in the last feature maps (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) and drawn where the
receptive fields of their positions are. Resizing them to the image instead is wrong for models whose strides round
down: a 3x3 map of 8 pixels a position sees 24 of 32 pixels, from the upper left corner.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar10_accel.errors import InputError
from cifar10_accel.models.receptive_field import Field, Trace, TraceReceptiveFields, tensors, trace_of

logger = logging.getLogger(__name__)

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class FeatureMaps:
    """The last feature maps of a forward pass."""

    layer: str  # name of the module whose output they are
    values: Tensor  # (N, C, h, w), or with channels elsewhere; part of the graph of the scores
    dims: tuple[int, int]  # of the rows and the columns
    rows: Field
    columns: Field
    is_traced: bool  # False: not traced back to the image, so the positions are taken to be evenly spread over it


def heat_maps(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """Return Grad-CAM heat maps (N, H, W) in 0..1, each scaled so that its largest value is 1.

    A map is 0 everywhere if no region raises the score of the class. It also falls to 0 beyond the outermost positions
    of the feature maps: nothing is known there.

    Args:
        model: A model that ends in feature maps. It is used in the mode it is in: put it into evaluation mode first.
            Its parameters keep no gradient.
        inputs: (N, C, H, W), as the model takes them.
        classes: (N,) int64, the class to explain for each image.

    Raises:
        InputError: The model does not end in feature maps.
    """
    batches = zip(torch.split(inputs, BATCH_SIZE), torch.split(classes, BATCH_SIZE), strict=True)
    return torch.cat([_heat_maps(model, *batch) for batch in batches])


@torch.enable_grad()
def feature_maps(model: nn.Module, inputs: Tensor) -> tuple[FeatureMaps, Tensor]:
    """Return the last feature maps of the forward pass, and the scores.

    Found by hooks, so that a model need not declare the layer: the last module output with more than one row or column.
    No map, if modules with parameters compute sequences (N, T, C) after it, as in a vision transformer.

    Raises:
        InputError: The model does not end in feature maps.
    """
    names = {module: name for name, module in model.named_modules()}
    inputs = inputs.detach().requires_grad_().clone()  # so that a model with frozen parameters has gradients, too
    found: list[tuple[str, Tensor]] = []
    sequences: list[str] = []  # modules after the feature maps whose output is a sequence

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        for tensor in tensors(output)[:1]:
            if found and found[0][1] is tensor:
                continue  # of a module that contains the layer
            if tensor.ndim == 4 and any(tensor.shape[dim] > 1 for dim in _dims(tensor)):
                found[:] = [(names[module], tensor)]
                sequences.clear()
            elif tensor.ndim == 3 and tensor.shape[1] > 1 and _has_own_parameters(module):
                sequences.append(names[module])

    hooks = [module.register_forward_hook(keep) for module in names]
    try:
        with TraceReceptiveFields(inputs):
            scores = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    kind = type(model).__name__
    if sequences:
        raise InputError(
            f"{kind} has no feature maps at its end: {sequences[-1]} works on a sequence, not on rows and columns; "
            "Grad-CAM needs a convolutional model"
        )
    if not found or not found[0][1].requires_grad:
        raise InputError(f"{kind} has no feature maps; Grad-CAM needs a convolutional model")
    return _located(*found[0], inputs), scores


def overlay(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the image (H, W, C) in grey with the heat (H, W) in 0..1 over it, from blue to yellow: (H, W, 3)."""
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32)
    cold, hot = np.array([20, 60, 160], dtype=np.float32), np.array([255, 225, 60], dtype=np.float32)
    share = heat[..., None]
    tint = cold + (hot - cold) * share
    weight = 0.25 + 0.4 * share
    return np.asarray(((1 - weight) * grey + weight * tint).round().clip(0, 255), dtype=np.uint8)


@torch.enable_grad()
def _heat_maps(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    maps, scores = feature_maps(model, inputs.detach())
    if not maps.is_traced:
        logger.warning("Grad-CAM: the place of %s in the image is not known; it is spread evenly over it", maps.layer)
    chosen = scores.float().gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, maps.values)
    weights = gradient.mean(dim=maps.dims, keepdim=True)  # per channel: how much it raises the score of the class
    (channels,) = {1, 2, 3} - set(maps.dims)
    heat = (weights * maps.values.detach()).sum(dim=channels).relu().float()
    height, width = inputs.shape[-2:]
    rows = _influence(maps.rows, heat.shape[1], height).to(heat.device)
    columns = _influence(maps.columns, heat.shape[2], width).to(heat.device)
    heat = rows @ heat @ columns.T
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _has_own_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _dims(tensor: Tensor) -> tuple[int, int]:
    """Return the dimensions of a map (N, C, H, W) that are rows and columns; traced ones may have another order."""
    trace = trace_of(tensor)
    return (2, 3) if trace is None or trace.dims is None else trace.dims


def _located(layer: str, values: Tensor, inputs: Tensor) -> FeatureMaps:
    """Return the feature maps with the fields that were traced or, if there are none, with evenly spread ones."""
    trace, dims = trace_of(values), _dims(values)
    is_traced = trace is not None and trace.dims is not None
    if trace is None or trace.dims is None:
        spread = [_evenly(values.shape[dim], pixels) for dim, pixels in zip(dims, inputs.shape[-2:], strict=True)]
        trace = Trace(rows=spread[0], columns=spread[1])
    return FeatureMaps(
        layer=layer or "the model",
        values=values,
        dims=dims,
        rows=trace.rows,
        columns=trace.columns,
        is_traced=is_traced,
    )


def _evenly(positions: int, pixels: int) -> Field:
    jump = pixels / positions
    return Field(jump, jump, (jump - 1) / 2)


def _influence(field: Field, positions: int, pixels: int) -> Tensor:
    """Return how much each position (column) is seen at each pixel (row): 1 at its centre, 0 at its neighbours'.

    Between two centres this is linear interpolation.
    """
    centres = field.start + field.jump * torch.arange(positions)
    return (1 - (torch.arange(pixels)[:, None] - centres).abs() / field.jump).clamp_min(0)
