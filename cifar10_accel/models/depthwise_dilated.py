"""A small net: the custom ResNet's silhouette in depthwise-separable and dilated convolutions.

Each 3x3 convolution becomes a 3x3 per channel and a 1x1 across channels, with nothing between them
(Xception found that better than a non-linearity there: Chollet 2016, https://arxiv.org/abs/1610.02357).
Where a stage halves the image, the 3x3 has stride 2, so the dear 1x1 works on a quarter of the pixels.
The second half of each residual is dilated, and the last stage stays at 8x8 instead of halving once
more (dilated residual networks: Yu et al. 2017, https://arxiv.org/abs/1705.09914), so every position
before the last pool sees the whole image. 892,672 parameters at width 64 (10 more with a bias in the
head), 66.6 M multiply-adds an image.
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
        self.layer1 = _stage(width, activation, stride=2)
        self.layer2 = _stage(2 * width, activation, stride=2)
        self.layer3 = _stage(4 * width, activation, stride=1)
        self.pool = GlobalMaxPool()
        self.head = nn.Linear(8 * width, num_classes, bias=head_bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.prep(images)  # (N, width, 32, 32)
        x = self.layer1(x)  # (N, 2 * width, 16, 16)
        x = self.layer2(x)  # (N, 4 * width, 8, 8)
        x = self.layer3(x)  # (N, 8 * width, 8, 8)
        logits: Tensor = self.head(self.pool(x))
        return logits * self.logit_scale


class _Residual(nn.Module):
    """x + two separable convolutions, the second dilated; the shape stays."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _separable(channels, channels, activation, stride=1, dilation=1),
            _separable(channels, channels, activation, stride=1, dilation=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


def _stage(channels: int, activation: Callable[[], nn.Module], *, stride: int) -> nn.Sequential:
    """Twice the channels, the image divided by `stride`, then a residual."""
    widen = _separable(channels, 2 * channels, activation, stride=stride, dilation=1)
    return nn.Sequential(widen, _Residual(2 * channels, activation))


def _separable(
    channels_in: int, channels_out: int, activation: Callable[[], nn.Module], *, stride: int, dilation: int
) -> nn.Sequential:
    depthwise = nn.Conv2d(
        channels_in, channels_in, kernel_size=3, stride=stride, padding=dilation, dilation=dilation,
        groups=channels_in, bias=False,
    )  # fmt: skip
    pointwise = nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False)
    return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(channels_out), activation())
