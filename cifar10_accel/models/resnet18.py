"""ResNet-18 in its CIFAR form: a 3x3 stem and no max-pool, so the first stage sees all 32x32 pixels.

(He et al. 2015, https://arxiv.org/abs/1512.03385, with the stem that CIFAR work settled on.)
11,173,962 parameters at width 64 with a bias in the head, which is the customary count; 10 fewer
without. `logit_scale=1` and `head_bias=True` give the textbook net.
"""

from collections.abc import Callable

from torch import Tensor, nn

from cifar10_accel.models.stem import stem


class Net(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, num_classes); stages of 1, 2, 4 and 8 times `width` channels."""

    def __init__(
        self, *, width: int, num_classes: int, activation: Callable[[], nn.Module], head_bias: bool, logit_scale: float,
        whitening: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.logit_scale = logit_scale
        self.stem = nn.Sequential(stem(width, whitening=whitening), nn.BatchNorm2d(width), activation())
        self.stage1 = _stage(width, width, activation, stride=1)
        self.stage2 = _stage(width, 2 * width, activation, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, activation, stride=2)
        self.stage4 = _stage(4 * width, 8 * width, activation, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8 * width, num_classes, bias=head_bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)  # (N, width, 32, 32)
        x = self.stage1(x)  # (N, width, 32, 32)
        x = self.stage2(x)  # (N, 2 * width, 16, 16)
        x = self.stage3(x)  # (N, 4 * width, 8, 8)
        x = self.stage4(x)  # (N, 8 * width, 4, 4)
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits * self.logit_scale


class _BasicBlock(nn.Module):
    """activation(shortcut + conv-norm-activation-conv-norm); the shortcut is 1x1 where the shape changes."""

    def __init__(
        self, channels_in: int, channels_out: int, activation: Callable[[], nn.Module], *, stride: int
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv3x3(channels_in, channels_out, stride=stride), nn.BatchNorm2d(channels_out), activation(),
            _conv3x3(channels_out, channels_out, stride=1), nn.BatchNorm2d(channels_out),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            conv1x1 = nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv1x1, nn.BatchNorm2d(channels_out))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return y


def _stage(channels_in: int, channels_out: int, activation: Callable[[], nn.Module], *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(channels_in, channels_out, activation, stride=stride),
        _BasicBlock(channels_out, channels_out, activation, stride=1),
    )


def _conv3x3(channels_in: int, channels_out: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
