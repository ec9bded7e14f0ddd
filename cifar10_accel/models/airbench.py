"""The models of the CIFAR-10 speed runs: three stages, most of the width in the last two.

Those of cifar10-airbench (Jordan 2024, https://arxiv.org/abs/2404.00498): its 94% model at width 64 with two
convolutions a stage, its 96% model at width 128 with three, and a residual around the last two. They are meant to be
trained with `whitening`, `identity_init` and a fixed norm scale, which are settings as for every model, so that each
can be switched off. 1,972,792 parameters at width 64 with two convolutions a stage, 118.1 M multiply-adds an image.
"""

from torch import Tensor, nn

from cifar10_accel.models.layers import Activation, Backbone


class Airbench(Backbone):
    """Backbone: (N, channels_in, 31, 31) to (N, 4 * width, 3, 3), in stages of 1, 4 and 4 times `width` channels."""

    def __init__(self, *, channels_in: int, width: int, activation: Activation, convs_per_stage: int) -> None:
        super().__init__()
        self.stage1 = _Stage(channels_in, width, activation, num_convs=convs_per_stage)
        self.stage2 = _Stage(width, 4 * width, activation, num_convs=convs_per_stage)
        self.stage3 = _Stage(4 * width, 4 * width, activation, num_convs=convs_per_stage)
        self.out_channels = 4 * width


class _Stage(nn.Module):
    """A convolution that halves the image, then one more, or two more with a residual around them."""

    def __init__(self, channels_in: int, channels_out: int, activation: Activation, *, num_convs: int) -> None:
        super().__init__()
        self.has_residual = num_convs > 2
        self.halve = nn.Sequential(_conv(channels_in, channels_out), nn.MaxPool2d(2), _norm(channels_out), activation())
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
    return nn.BatchNorm2d(channels, momentum=0.4)  # fast running statistics, for training of few steps
