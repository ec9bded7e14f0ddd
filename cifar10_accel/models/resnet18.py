"""ResNet-18 in its CIFAR form: a 3x3 stem and no max-pool, so the first stage works on all 32x32 pixels.

He et al. 2015, https://arxiv.org/abs/1512.03385, with the stem that is usual for CIFAR.
11,173,962 parameters at width 64 with a bias in the head, the usual count; 10 fewer without.
`logit_scale=1` and `head_bias=True` give the textbook model.
"""

from torch import Tensor, nn

from cifar10_accel.models.layers import Activation, Backbone


class ResNet18(Backbone):
    """Backbone: (N, width, 32, 32) to (N, 8 * width, 4, 4)."""

    def __init__(self, *, width: int, activation: Activation) -> None:
        super().__init__()
        self.stage1 = _stage(width, width, activation, stride=1)
        self.stage2 = _stage(width, 2 * width, activation, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, activation, stride=2)
        self.stage4 = _stage(4 * width, 8 * width, activation, stride=2)
        self.out_channels = 8 * width


class _BasicBlock(nn.Module):
    """activation(shortcut + conv-norm-activation-conv-norm); the shortcut is 1x1 where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, activation: Activation, *, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv3x3(channels_in, channels_out, stride=stride),
            nn.BatchNorm2d(channels_out),
            activation(),
            _conv3x3(channels_out, channels_out, stride=1),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            conv1x1 = nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv1x1, nn.BatchNorm2d(channels_out))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return y


def _stage(channels_in: int, channels_out: int, activation: Activation, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(channels_in, channels_out, activation, stride=stride),
        _BasicBlock(channels_out, channels_out, activation, stride=1),
    )


def _conv3x3(channels_in: int, channels_out: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
