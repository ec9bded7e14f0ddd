"""ResNet-9 with depthwise-separable and dilated convolutions: a small model.

Each 3x3 convolution becomes a 3x3 per channel and a 1x1 across channels, with nothing between them
(better than a non-linearity there in Xception: Chollet 2016, https://arxiv.org/abs/1610.02357).
Where a stage halves the image, the 3x3 has stride 2, so the expensive 1x1 works on a quarter of the pixels.
The second half of each residual is dilated, and the last stage stays at 8x8 instead of halving once
more (dilated residual networks: Yu et al. 2017, https://arxiv.org/abs/1705.09914), so every position
before the global pool depends on the whole image. 892,672 parameters at width 64 (10 more with a bias in the
head), 66.6 M multiply-adds an image.
"""

from torch import Tensor, nn

from cifar10_accel.models.layers import Activation, Backbone


class DepthwiseDilated(Backbone):
    """Backbone: (N, width, 32, 32) to (N, 8 * width, 8, 8)."""

    def __init__(self, *, width: int, activation: Activation) -> None:
        super().__init__()
        self.layer1 = _stage(width, activation, stride=2)
        self.layer2 = _stage(2 * width, activation, stride=2)
        self.layer3 = _stage(4 * width, activation, stride=1)
        self.out_channels = 8 * width


class _Residual(nn.Module):
    """x + two separable convolutions, the second dilated; the shape is kept."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _separable(channels, channels, activation, stride=1, dilation=1),
            _separable(channels, channels, activation, stride=1, dilation=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


def _stage(channels: int, activation: Activation, *, stride: int) -> nn.Sequential:
    """Return layers that double the channels and divide the image by `stride`, and a residual block."""
    widen = _separable(channels, 2 * channels, activation, stride=stride, dilation=1)
    return nn.Sequential(widen, _Residual(2 * channels, activation))


def _separable(
    channels_in: int, channels_out: int, activation: Activation, *, stride: int, dilation: int
) -> nn.Sequential:
    depthwise = nn.Conv2d(
        channels_in,
        channels_in,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=channels_in,
        bias=False,
    )
    pointwise = nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False)
    return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(channels_out), activation())
