"""Strided convolutions of images one pixel wide: gradients in bf16 on a CPU, where torch's own may be wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar10_accel.models.narrow_image_conv import NarrowImageConv2d, correct_narrow_images

LAYERS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "5x5, stride 3": {"kernel_size": 5, "padding": 2, "stride": 3},
    "4x4": {"kernel_size": 4, "padding": 2},
    "1x1": {"kernel_size": 1},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8},
    "with bias": {"kernel_size": 3, "padding": 1, "bias": True},
    "flat": {"kernel_size": (1, 3), "padding": (0, 1), "stride": (1, 2)},
}


def gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the output and the gradients of images and parameters in bf16, in memory that was NaN before."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(images)
    freed = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in (64, 192, 576, 1600, 4096) * 4]
    del freed
    generator = torch.Generator().manual_seed(1)
    y.float().mul(torch.randn(y.shape, generator=generator)).sum().backward()
    assert images.grad is not None
    return [
        y.detach().float(),
        images.grad,
        *(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
    ]


@pytest.mark.parametrize("height", [1, 2, 5])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_training_in_bf16_gives_the_gradients_of_float32_up_to_rounding(options: dict[str, Any], height: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, **{"stride": 2, "bias": False} | options)
    images = torch.randn(16, 8, height, 1)
    expected = layer(images)
    exact = nn.Conv2d(8, 8, **{"stride": 2, "bias": False} | options)
    exact.load_state_dict(layer.state_dict())
    correct_narrow_images(model := nn.Sequential(layer))
    assert isinstance(model[0], NarrowImageConv2d)
    found = gradients(model, images)
    inputs = images.clone().requires_grad_()
    y = exact(inputs)
    generator = torch.Generator().manual_seed(1)
    y.mul(torch.randn(y.shape, generator=generator)).sum().backward()
    assert torch.equal(layer(images), expected)  # without autocast it is as it was
    assert inputs.grad is not None
    reference = [y.detach(), inputs.grad, *(value.grad for value in exact.parameters() if value.grad is not None)]
    for one, other in zip(found, reference, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * float(other.abs().max()))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1, "stride": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": "valid", "stride": 2},
        {"kernel_size": 3, "padding": 3, "stride": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2, "dilation": 2},
    ],
)
def test_other_convolutions_stay_as_they_are(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, **options))
    correct_narrow_images(model)
    assert type(model[0]) is nn.Conv2d


def test_wide_images_are_convolved_with_the_whole_kernel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1))
    images = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
        correct_narrow_images(model)
        assert torch.equal(model(images), expected)
