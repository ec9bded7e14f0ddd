"""The models that settings can name, and how one is built."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cifar10_accel.models.airbench import Airbench
from cifar10_accel.models.depthwise_dilated import DepthwiseDilated
from cifar10_accel.models.layers import (
    Activation,
    Backbone,
    ConvNet,
    GlobalAveragePool,
    GlobalMaxPool,
    Whitening,
    conv2x2_stem,
    conv3x3_stem,
)
from cifar10_accel.models.resnet9 import ResNet9
from cifar10_accel.models.resnet18 import ResNet18
from cifar10_accel.settings import ModelSettings

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet9": ResNet9,
    "resnet18": ResNet18,
    "depthwise_dilated": DepthwiseDilated,
    "airbench94": partial(Airbench, convs_per_stage=2),
    "airbench96": partial(Airbench, convs_per_stage=3),
}

ACTIVATIONS: dict[str, Activation] = {
    "relu": partial(nn.ReLU, inplace=True),  # its gradient needs only the output: a third less memory
    "gelu": nn.GELU,
    "celu": partial(nn.CELU, alpha=0.075),  # nearly a ReLU, but smooth; the alpha of DAWNBench's CIFAR-10 entries
    "silu": nn.SiLU,
}


def build_model(settings: ModelSettings, *, num_classes: int) -> ConvNet:
    """Build the model of the settings, from normalised images (N, 3, 32, 32) to logits (N, num_classes).

    Weights are drawn from torch's global generator: seed it first. A whitening stem is random until `fit_whitening`.

    Args:
        settings: All of section ModelSettings applies to every model: `width` scales every stage, the head is one
            linear layer with a bias if `head_bias`, and the logits are multiplied by `logit_scale`.
        num_classes: Number of logits.
    """
    activation = ACTIVATIONS[settings.activation]
    if settings.model in ("airbench94", "airbench96"):
        stem = conv2x2_stem(activation, whitening=settings.whitening)
    else:
        stem = conv3x3_stem(settings.width, activation, whitening=settings.whitening)
    backbone = BACKBONES[settings.model](width=settings.width, activation=activation)
    pool = GlobalAveragePool() if settings.model == "resnet18" else GlobalMaxPool()
    head = nn.Linear(backbone.out_channels, num_classes, bias=settings.head_bias)
    model = ConvNet(stem, backbone, pool, head, logit_scale=settings.logit_scale)
    if settings.identity_init:
        _init_convolutions_as_identity(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.weight, settings.norm_gain)
            layer.weight.requires_grad_(settings.norm_scale)
        elif isinstance(layer, Whitening):
            layer.gain = settings.norm_gain
    return model


def fit_whitening(model: nn.Module, images: Tensor) -> None:
    """Fit the whitening stem, if the model has one, to normalised images (N, 3, H, W)."""
    for layer in model.modules():
        if isinstance(layer, Whitening):
            layer.fit(images)


@torch.no_grad()
def _init_convolutions_as_identity(model: nn.Module) -> None:
    """Make the first filters of every dense 3x3 convolution but the stem pass their inputs on; the rest stay random."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.groups == 1 and layer.in_channels > 3:
            nn.init.dirac_(layer.weight[: layer.in_channels])
