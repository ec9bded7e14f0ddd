"""The nets. Each is one file of plain modules; `build` makes the one that the settings name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from cifar10_accel.models.custom_resnet import CustomResNet
from cifar10_accel.models.depthwise_dilated import DepthwiseDilated
from cifar10_accel.models.resnet18 import ResNet18
from cifar10_accel.settings import ModelSettings

NETS = {"custom_resnet": CustomResNet, "resnet18": ResNet18, "depthwise_dilated": DepthwiseDilated}

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
    Weights are drawn from torch's global generator: seed it first.
    """
    return NETS[settings.model](
        width=settings.width,
        num_classes=num_classes,
        activation=ACTIVATIONS[settings.activation],
        head_bias=settings.head_bias,
        logit_scale=settings.logit_scale,
    )
