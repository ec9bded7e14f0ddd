"""Strided convolutions of feature maps that are one pixel wide, for bf16 training on a CPU.

oneDNN, as torch 2.14 has it, leaves parts of their weight gradient unwritten on a CPU with AMX: they have what the
memory held before. Only one column of the kernel meets the pixel; with that column alone the gradient is right.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NarrowImageConv2d(nn.Conv2d):
    """A strided convolution that leaves out the columns of its kernel which meet padding only.

    It differs from `nn.Conv2d` only for images one pixel wide and under bf16 autocast on a CPU. Parameters and their
    names are those of `nn.Conv2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of (N, in, H, W): (N, out, H', W')."""
        is_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if x.shape[-1] != 1 or x.device.type != "cpu" or not is_bf16:
            return super().forward(x)
        column = _column(self)
        return F.conv2d(
            x,
            self.weight[..., column : column + 1],
            self.bias,
            stride=(self.stride[0], 1),
            padding=(int(self.padding[0]), 0),
            dilation=self.dilation,
            groups=self.groups,
        )


def correct_narrow_images(model: nn.Module) -> None:
    """Turn the strided convolutions of a model into `NarrowImageConv2d`, in place."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _fits(layer):
            layer.__class__ = NarrowImageConv2d


def _column(layer: nn.Conv2d) -> int:
    """Return the column of the kernel that meets an image one pixel wide, if the output is one pixel wide, too."""
    return int(layer.padding[1]) // layer.dilation[1]


def _fits(layer: nn.Conv2d) -> bool:
    if layer.stride[1] == 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    padding, dilation, kernel = layer.padding[1], layer.dilation[1], layer.kernel_size[1]
    is_one_pixel_wide = 0 <= 2 * padding - dilation * (kernel - 1) < layer.stride[1]
    return is_one_pixel_wide and padding % dilation == 0
