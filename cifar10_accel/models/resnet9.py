"""ResNet-9: nine weight layers that reach 94% on CIFAR-10 in 24 epochs.

David Page's DAWNBench ResNet-9 ("How to train your ResNet", 2018), which is also the custom ResNet (`A11`) of the
original project: 64-128-256-512 channels and two residual blocks. Two of its properties are kept on purpose: the pool
stands before the norm, which then works on a quarter of the values, and a residual is added after the last activation
of its block. 6,573,120 parameters at width 64 (10 more with a bias in the head), 379.3 M
multiply-adds an image.
"""

from torch import Tensor, nn

from cifar10_accel.models.layers import Activation, Backbone


class ResNet9(Backbone):
    """Backbone: (N, width, 32, 32) to (N, 8 * width, 4, 4)."""

    def __init__(self, *, width: int, activation: Activation) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(_downsample(width, 2 * width, activation), _Residual(2 * width, activation))
        self.layer2 = _downsample(2 * width, 4 * width, activation)
        self.layer3 = nn.Sequential(_downsample(4 * width, 8 * width, activation), _Residual(8 * width, activation))
        self.out_channels = 8 * width


class _Residual(nn.Module):
    """x + (conv, norm, activation) twice; the shape is kept."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv(channels, channels),
            nn.BatchNorm2d(channels),
            activation(),
            _conv(channels, channels),
            nn.BatchNorm2d(channels),
            activation(),
        )

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


def _downsample(channels_in: int, channels_out: int, activation: Activation) -> nn.Sequential:
    return nn.Sequential(_conv(channels_in, channels_out), nn.MaxPool2d(2), nn.BatchNorm2d(channels_out), activation())


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
