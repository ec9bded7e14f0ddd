"""Grad-CAM: the regions of an image that raise the score of a class, for any convolutional model.

Computed in the last feature maps (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10_accel.errors import InputError

BATCH_SIZE = 64


def heat_maps(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """Return Grad-CAM heat maps (N, H, W) in 0..1, each scaled so that its largest value is 1.

    A map is 0 everywhere if no region raises the score of the class.

    Args:
        model: A convolutional model. It is used in the mode it is in: put it into evaluation mode first. Its
            parameters keep no gradient.
        inputs: (N, C, H, W), as the model takes them.
        classes: (N,) int64, the class to explain for each image.

    Raises:
        InputError: The model has no feature maps.
    """
    batches = zip(torch.split(inputs, BATCH_SIZE), torch.split(classes, BATCH_SIZE), strict=True)
    return torch.cat([_heat_maps(model, *batch) for batch in batches])


def overlay(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the image (H, W, 3) in grey with the heat (H, W) in 0..1 over it, from blue to yellow."""
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32)
    cold, hot = np.array([20, 60, 160], dtype=np.float32), np.array([255, 225, 60], dtype=np.float32)
    share = heat[..., None]
    tint = cold + (hot - cold) * share
    weight = 0.25 + 0.4 * share
    return np.asarray(((1 - weight) * grey + weight * tint).round().clip(0, 255), dtype=np.uint8)


@torch.enable_grad()
def _heat_maps(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    maps, scores = _forward(model, inputs.detach())
    chosen = scores.float().gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # per channel: how much it raises the score of the class
    heat = (weights * maps.detach()).sum(dim=1, keepdim=True).relu().float()
    heat = F.interpolate(heat, size=inputs.shape[-2:], mode="bilinear")[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _forward(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last feature maps of the forward pass, and the scores.

    Feature maps are the last module output of shape (N, C, H, W) with more than one pixel, which is what the global
    pool works on. Found by hooks, so that a model need not declare the layer.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] * output.shape[-2] > 1:
            found[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        scores = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found or not found[0].requires_grad:
        raise InputError(f"{type(model).__name__} has no feature maps; Grad-CAM needs a convolutional model")
    return found[0], scores
