"""The models that settings can name, and how one is built."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cifar10_accel.components import is_import_path
from cifar10_accel.data.image_format import CIFAR10_IMAGES, ImageFormat
from cifar10_accel.errors import SettingsError
from cifar10_accel.models.airbench import Airbench
from cifar10_accel.models.depthwise_dilated import DepthwiseDilated
from cifar10_accel.models.imported import build_imported, require_logits
from cifar10_accel.models.layers import (
    Activation,
    Backbone,
    ConvNet,
    GlobalAveragePool,
    GlobalMaxPool,
    Whitening,
    conv2x2_stem,
    conv2x2_stem_channels,
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


def build_model(
    settings: ModelSettings,
    *,
    num_classes: int,
    image_format: ImageFormat = CIFAR10_IMAGES,
    pretrained: bool = False,
) -> nn.Module:
    """Build the model of the settings, from normalised images (N, C, H, W) to logits (N, num_classes).

    Weights are drawn from torch's global generator: seed it first.

    Args:
        settings: Name the model and its hyperparameters.
        num_classes: Number of logits.
        image_format: Number of channels and size of the images.
        pretrained: Let a model that is not built in download its published weights.

    Raises:
        SettingsError: A setting is none of this model's.
        InputError: The model cannot be built, or does not return logits for images of this format.
    """
    if is_import_path(settings.model):
        return build_imported(settings, num_classes=num_classes, image_format=image_format, pretrained=pretrained)
    if pretrained:
        raise SettingsError(
            f"pretrained: there are no published weights of {settings.model}; leave it out, or give --model timm:NAME"
        )
    model = build_built_in(settings, num_classes=num_classes, in_channels=image_format.channels)
    if image_format.size < CIFAR10_IMAGES.size:  # halved several times
        require_logits(model, settings.model, num_classes=num_classes, image_format=image_format)
    return model


def build_built_in(settings: ModelSettings, *, num_classes: int, in_channels: int) -> ConvNet:
    """Build one of `BACKBONES` between its stem and its head. A whitening stem is random until `fit_whitening`.

    All of section ModelSettings applies to each of them: `width` scales every stage, the head is one linear layer with
    a bias if `head_bias`, and the logits are multiplied by `logit_scale`.
    """
    width, activation = settings.width, ACTIVATIONS[settings.activation]
    if settings.model in ("airbench94", "airbench96"):
        stem = conv2x2_stem(in_channels, activation, whitening=settings.whitening)
        channels = conv2x2_stem_channels(in_channels)
        backbone = BACKBONES[settings.model](channels_in=channels, width=width, activation=activation)
    else:
        stem = conv3x3_stem(in_channels, width, activation, whitening=settings.whitening)
        backbone = BACKBONES[settings.model](width=width, activation=activation)
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
    """Fit the whitening stem, if the model has one, to normalised images (N, C, H, W)."""
    for layer in model.modules():
        if isinstance(layer, Whitening):
            layer.fit(images)


@torch.no_grad()
def _init_convolutions_as_identity(model: nn.Module) -> None:
    """Make the first filters of every dense 3x3 convolution but the stem pass their inputs on; the rest stay random."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.groups == 1 and layer.in_channels > 3:
            nn.init.dirac_(layer.weight[: layer.in_channels])
