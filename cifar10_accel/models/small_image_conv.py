"""Faster weight gradients of 3x3 convolutions on small images, for bf16 training on a CPU with AMX.

oneDNN sums this gradient over the pixels of one row of one image at a time. An AMX tile takes 32 of them, so a row of 7
or 3 pixels leaves most of it empty. Here the images of a batch are first set side by side, a column of zeros between
them, which gives oneDNN long rows; the sums stay the same up to the order of addition. BENCHMARKS.md, "Small images in
bf16", has the measured ratios: 1.4 to 9 times as fast on images of 8 x 8 pixels or less; larger ones would lose.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGEST_SIDE = 8  # of the images, in pixels
ROW = 160  # pixels side by side, at most


class SmallImageConv2d(nn.Conv2d):
    """A 3x3 convolution (stride 1, padding 1, no bias) whose weight gradient is faster on small images.

    It differs from `nn.Conv2d` only while it is trained on small images under bf16 autocast on a CPU and is neither
    compiled nor exported. Parameters and their names are those of `nn.Conv2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of (N, in, H, W): (N, out, H, W)."""
        if max(x.shape[-2:]) > LARGEST_SIDE or not self._is_trained_in_bf16(x):
            return super().forward(x)
        # The casts are those of autocast; the gradient of the second one is the float32 gradient of the weight.
        y: Tensor = _SmallImageConvolution.apply(x.bfloat16(), self.weight.bfloat16())
        return y

    def _is_trained_in_bf16(self, x: Tensor) -> bool:
        return (
            self.training
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and x.ndim == 4
            and x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and not torch.compiler.is_compiling()
        )


def speed_up_small_images(model: nn.Module) -> None:
    """Turn the fitting convolutions of a model into `SmallImageConv2d`, in place, if this CPU has AMX."""
    if not torch.cpu.get_capabilities().get("amx_bf16"):
        return
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _fits(layer):
            layer.__class__ = SmallImageConv2d


def weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a 3x3 convolution's weight.

    Args:
        x: Input (N, in, H, W).
        gradient: Of the output, (N, out, H, W).
        weight: (out, in, 3, 3); only its shape and memory format count.
    """
    num_images, width = x.shape[0], x.shape[-1]
    side_by_side = max(count for count in range(1, max(2, ROW // (width + 1) + 1)) if num_images % count == 0)
    wide = [_side_by_side(images, side_by_side) for images in (x, gradient)]
    return _gradients(wide[0], wide[1], weight, [False, True, False])[1]


class _SmallImageConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        needs_input_gradient = ctx.needs_input_grad[0]
        of_input = _gradients(x, gradient, weight, [True, False, False])[0] if needs_input_gradient else None
        return of_input, weight_gradient(x, gradient, weight)


def _side_by_side(images: Tensor, count: int) -> Tensor:
    """Set each `count` images side by side, a column of zeros after each: (N / count, C, H, count * (W + 1))."""
    number, channels, height, width = images.shape
    wide = images.new_zeros(number // count, height, count, width + 1, channels)
    in_groups = images.permute(0, 2, 3, 1).reshape(number // count, count, height, width, channels)
    wide[..., :width, :] = in_groups.transpose(1, 2)
    return wide.flatten(2, 3).permute(0, 3, 1, 2)


def _gradients(x: Tensor, gradient: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor]:
    """Return the gradients of input, weight and bias of a 3x3 convolution that are wanted, from oneDNN."""
    stride, padding, dilation, groups = (1, 1), (1, 1), (1, 1), 1
    result: list[Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
    )
    return result


def _fits(layer: nn.Conv2d) -> bool:
    ones = (1, 1)
    is_plain = (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), ones, ones, ones)
    return is_plain and layer.groups == 1 and layer.bias is None and layer.padding_mode == "zeros"
