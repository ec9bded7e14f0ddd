"""3x3 convolutions on small images: the weight gradient of images side by side, and where it is used."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifar10_accel.models import small_image_conv
from cifar10_accel.models.small_image_conv import SmallImageConv2d, speed_up_small_images, weight_gradient


@pytest.fixture(autouse=True)
def _amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})


def example(
    *, number: int = 6, size: tuple[int, int] = (3, 3), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return images and the gradient of their convolution with 6 filters."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(number, channels, *size, generator=generator, dtype=dtype) for channels in (4, 6))
    return x.contiguous(memory_format=torch.channels_last), gradient


def convolution(*, faster: bool) -> nn.Conv2d:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False)).to(memory_format=torch.channels_last)
    if faster:
        speed_up_small_images(model)
    layer = model[0]
    assert isinstance(layer, SmallImageConv2d) == faster
    return layer


def is_side_by_side(y: Tensor) -> bool:
    """Return whether the gradient of a convolution's output will be computed with images side by side."""
    return "SmallImage" in type(y.grad_fn).__name__


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("number", [1, 6, 41, 64])  # 41: one side by side
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (2, 5), (5, 2)])
def test_the_weight_gradient_is_that_of_autograd(
    size: tuple[int, int], number: int, memory_format: torch.memory_format
) -> None:
    given = example(number=number, size=size, dtype=torch.float64)
    x, gradient = (tensor.contiguous(memory_format=memory_format) for tensor in given)
    weight = torch.zeros(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, gradient)
    torch.testing.assert_close(weight_gradient(x, gradient, weight), expected, rtol=1e-12, atol=1e-12)


def test_training_in_bf16_gives_the_gradients_of_conv2d_up_to_rounding() -> None:
    x, gradient = example()
    results = []
    for faster in (False, True):
        layer, images = convolution(faster=faster), x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(images)
        assert is_side_by_side(y) == faster
        y.backward(gradient.bfloat16())
        assert layer.weight.grad is not None
        assert images.grad is not None
        assert layer.weight.grad.dtype == images.grad.dtype == torch.float32
        assert layer.weight.grad.stride() == layer.weight.stride()
        results.append((y.detach(), images.grad, layer.weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[1][2], results[0][2], rtol=2**-6, atol=2**-6)


def test_float32_evaluation_compiled_frozen_and_large_images_are_those_of_conv2d() -> None:
    x, gradient = example()
    layer, plain = convolution(faster=True), convolution(faster=False)
    for each in (layer, plain):
        each(x).backward(gradient)
    assert layer.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert not is_side_by_side(layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_side_by_side(layer(x))
        assert not is_side_by_side(layer(torch.ones(1, 4, small_image_conv.LARGEST_SIDE + 1, 2)))
        with torch.no_grad():
            assert torch.equal(layer(x), plain(x))
        exported = torch.export.export(layer, (x,))
        compiled = torch.compile(layer, backend="eager", fullgraph=True)(x)
        assert not is_side_by_side(compiled)
        layer.eval()
        assert not is_side_by_side(layer(x))
        layer.train().requires_grad_(False)
        assert not is_side_by_side(layer(x.clone().requires_grad_()))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert any("conv2d" in target for target in targets)


def test_only_dense_3x3_convolutions_change_and_only_with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, padding=1),
    ]
    model = nn.Sequential(*others, nn.Conv2d(4, 4, 3, padding=1, bias=False))
    names = list(model.state_dict())
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # none
    speed_up_small_images(model)
    assert not any(isinstance(layer, SmallImageConv2d) for layer in model)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    speed_up_small_images(model)
    assert [isinstance(layer, SmallImageConv2d) for layer in model] == [False] * len(others) + [True]
    assert list(model.state_dict()) == names
