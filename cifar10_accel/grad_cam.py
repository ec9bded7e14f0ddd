"""Grad-CAM: which parts of an image speak for a class, in the last feature maps of any convolutional net.

(Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391)
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10_accel.errors import InputError

CHUNK = 64  # images at a time


def heat_maps(net: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """How much each place speaks for a class: (N, H, W) in 0..1, the strongest place of each image 1.

    inputs: (N, C, H, W) as the net takes them; classes: (N,), one for each image. A map is 0 everywhere if
    nothing speaks for the class. The net is used as it is (put it into evaluation mode first), and no gradient is
    left in it. Raises `InputError` for a net that has no feature maps.
    """
    chunks = zip(torch.split(inputs, CHUNK), torch.split(classes, CHUNK), strict=True)
    return torch.cat([_heat_maps(net, *chunk) for chunk in chunks])


def overlay(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) uint8 in grey, with the heat (H, W) in 0..1 over it from blue to yellow."""
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32)
    cold, hot = np.array([20, 60, 160], dtype=np.float32), np.array([255, 225, 60], dtype=np.float32)
    share = heat[..., None]
    tint = cold + (hot - cold) * share
    weight = 0.25 + 0.4 * share
    return np.asarray(((1 - weight) * grey + weight * tint).round().clip(0, 255), dtype=np.uint8)


@torch.enable_grad()
def _heat_maps(net: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    maps, scores = _forward(net, inputs.detach())
    chosen = scores.float().gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # of each channel: what more of it adds to the class
    heat = (weights * maps.detach()).sum(dim=1, keepdim=True).relu().float()
    heat = F.interpolate(heat, size=inputs.shape[-2:], mode="bilinear")[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _forward(net: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The last feature maps on the way to the scores, and the scores.

    Feature maps: the last output of any module that still has places, (N, C, H, W) with more than one of them:
    what the last pool works on. So no net has to say which of its layers that is.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] * output.shape[-2] > 1:
            found[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in net.modules()]
    try:
        scores = net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found or not found[0].requires_grad:
        raise InputError(f"{type(net).__name__} has no feature maps to look at; Grad-CAM needs a convolutional net")
    return found[0], scores
