"""The nets. Each is one file of plain modules whose class is `Net`; `build` makes the one that the settings name."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import get_args

import torch
from torch import Tensor, nn

from cifar10_accel.models.stem import Whitening
from cifar10_accel.names import Model
from cifar10_accel.settings import ModelSettings

NETS: dict[str, Callable[..., nn.Module]] = {name: import_module(f"{__name__}.{name}").Net for name in get_args(Model)}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # the output is enough for its gradient: a third less memory
    "gelu": nn.GELU,
    "celu": partial(nn.CELU, alpha=0.075),  # nearly a ReLU, but smooth; the alpha of DAWNBench's CIFAR-10 entries
    "silu": nn.SiLU,
}


def build(settings: ModelSettings, *, num_classes: int) -> nn.Module:
    """A fresh net: images (N, 3, 32, 32) float, normalised, to logits (N, num_classes).

    All nets take all model settings alike: `width` scales every stage, the head is one linear layer
    with a bias if `head_bias`, and the logits leave the net multiplied by `logit_scale`.
    Weights are drawn from torch's global generator: seed it first. A whitening stem is random until `fit_whitening`.
    """
    net = NETS[settings.model](
        width=settings.width,
        num_classes=num_classes,
        activation=ACTIVATIONS[settings.activation],
        head_bias=settings.head_bias,
        logit_scale=settings.logit_scale,
        whitening=settings.whitening,
    )
    if settings.identity_init:
        _start_as_identity(net)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.weight, settings.norm_gain)
            layer.weight.requires_grad_(settings.norm_scale)
        elif isinstance(layer, Whitening):
            layer.gain = settings.norm_gain
    return net


def fit_whitening(net: nn.Module, images: Tensor) -> None:
    """Fits the whitening stem, if the net has one, to normalised images (N, 3, 32, 32)."""
    for layer in net.modules():
        if isinstance(layer, Whitening):
            layer.fit(images)


@torch.no_grad()
def _start_as_identity(net: nn.Module) -> None:
    """Lets the first filters of every dense 3x3 convolution but the stem pass their inputs on; the rest stay random."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.groups == 1 and layer.in_channels > 3:
            nn.init.dirac_(layer.weight[: layer.in_channels])
