"""The custom ResNet: nine layers that reach 94% on CIFAR-10 in 24 epochs.

David Page's DAWNBench net ("How to train your ResNet", 2018). Its two habits are kept on purpose:
the pool stands before the norm, which then works on a quarter of the values, and a residual is
added after the last activation of its block. 6,573,120 parameters at width 64 (10 more with a bias
in the head), 379.3 M multiply-adds an image.
"""

from collections.abc import Callable

from torch import Tensor, nn

from cifar10_accel.models.pool import GlobalMaxPool
from cifar10_accel.models.stem import stem


class Net(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, num_classes); stages of 1, 2, 4 and 8 times `width` channels."""

    def __init__(
        self, *, width: int, num_classes: int, activation: Callable[[], nn.Module], head_bias: bool, logit_scale: float,
        whitening: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.logit_scale = logit_scale
        self.prep = nn.Sequential(stem(width, whitening=whitening), nn.BatchNorm2d(width), activation())
        self.layer1 = nn.Sequential(_halve(width, 2 * width, activation), _Residual(2 * width, activation))
        self.layer2 = _halve(2 * width, 4 * width, activation)
        self.layer3 = nn.Sequential(_halve(4 * width, 8 * width, activation), _Residual(8 * width, activation))
        self.pool = GlobalMaxPool()
        self.head = nn.Linear(8 * width, num_classes, bias=head_bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.prep(images)  # (N, width, 32, 32)
        x = self.layer1(x)  # (N, 2 * width, 16, 16)
        x = self.layer2(x)  # (N, 4 * width, 8, 8)
        x = self.layer3(x)  # (N, 8 * width, 4, 4)
        logits: Tensor = self.head(self.pool(x))
        return logits * self.logit_scale


class _Residual(nn.Module):
    """x + (conv, norm, activation) twice; the shape stays."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv(channels, channels), nn.BatchNorm2d(channels), activation(),
            _conv(channels, channels), nn.BatchNorm2d(channels), activation(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


def _halve(channels_in: int, channels_out: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        _conv(channels_in, channels_out), nn.MaxPool2d(2), nn.BatchNorm2d(channels_out), activation()
    )  # fmt: skip


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
