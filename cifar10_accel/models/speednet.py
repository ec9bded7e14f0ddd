"""The nets of the speed runs: three stages, most of the width in the last two, no residual unless they are deep.

After cifar10-airbench (Jordan 2024, https://arxiv.org/abs/2404.00498), whose 94% and 96% nets these are at widths 64
and 128. They are meant to be trained with `whitening`, `identity_init` and a fixed norm scale; as everywhere these
are settings, so that each can be taken out. 1,972,792 parameters at width 64, 118.1 M multiply-adds an image.
"""

from collections.abc import Callable

from torch import Tensor, nn

from cifar10_accel.models.pool import GlobalMaxPool
from cifar10_accel.models.stem import Whitening

STEM_CHANNELS = 24  # twelve components of a 2x2 patch and their negatives


class Net(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, num_classes); stages of 1, 4 and 4 times `width` channels."""

    def __init__(
        self, *, width: int, num_classes: int, activation: Callable[[], nn.Module], head_bias: bool, logit_scale: float,
        whitening: bool, convs_per_stage: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.logit_scale = logit_scale
        learned = nn.Conv2d(3, STEM_CHANNELS, kernel_size=2)
        self.stem = nn.Sequential(
            Whitening(kernel_size=2, padding=0, both_signs=True) if whitening else learned, activation()
        )
        self.stage1 = _Stage(STEM_CHANNELS, width, activation, num_convs=convs_per_stage)
        self.stage2 = _Stage(width, 4 * width, activation, num_convs=convs_per_stage)
        self.stage3 = _Stage(4 * width, 4 * width, activation, num_convs=convs_per_stage)
        self.pool = GlobalMaxPool()
        self.head = nn.Linear(4 * width, num_classes, bias=head_bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)  # (N, 24, 31, 31)
        x = self.stage1(x)  # (N, width, 15, 15)
        x = self.stage2(x)  # (N, 4 * width, 7, 7)
        x = self.stage3(x)  # (N, 4 * width, 3, 3)
        logits: Tensor = self.head(self.pool(x))
        return logits * self.logit_scale


class _Stage(nn.Module):
    """A convolution that halves the image, then one more, or two more with a residual around them."""

    def __init__(
        self, channels_in: int, channels_out: int, activation: Callable[[], nn.Module], *, num_convs: int
    ) -> None:
        super().__init__()
        self.has_residual = num_convs > 2
        self.halve = nn.Sequential(
            _conv(channels_in, channels_out), nn.MaxPool2d(2), _norm(channels_out), activation()
        )  # fmt: skip
        rest = [
            layer
            for _ in range(num_convs - 1)
            for layer in (_conv(channels_out, channels_out), _norm(channels_out), activation())
        ]
        self.branch, self.activation = nn.Sequential(*rest[:-1]), rest[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(x)
        branch: Tensor = self.branch(x)
        y: Tensor = self.activation(x + branch if self.has_residual else branch)
        return y


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=0.4)  # so few updates need statistics that follow fast
