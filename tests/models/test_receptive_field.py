"""Receptive fields: size, distance and place of what gradients reach, for modules and for functional calls."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10_accel.models.receptive_field import Trace, TraceReceptiveFields, trace_of

SIDE = 40
Layers = Callable[[Tensor], Tensor]


def conv(channels_in: int, kernel: int, **options: object) -> nn.Conv2d:
    """A convolution with positive weights, so that no two paths cancel."""
    layer = nn.Conv2d(channels_in, 2, kernel, bias=False, **options)  # type: ignore[arg-type]
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    return layer


def transposed(kernel: int, stride: int, padding: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(3, 2, kernel, stride=stride, padding=padding, bias=False)
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    return layer


def in_other_order(x: Tensor) -> Tensor:
    """Slices with the channels last, as in patch merging, and back."""
    y = x.permute(0, 2, 3, 1)[:, 1::2, 1::2].transpose(1, 3)
    return y.transpose(2, 3)


MODELS: dict[str, Layers] = {
    "strides that round down": nn.Sequential(conv(3, 2), nn.AvgPool2d(2), conv(2, 3, padding=1), nn.AvgPool2d(2)),
    "dilation and stride": nn.Sequential(conv(3, 3, dilation=2, padding=2), conv(2, 3, stride=2, padding=1)),
    "padding same": nn.Sequential(conv(3, 4, padding="same"), conv(2, 5, padding="same", dilation=2)),
    "reflected padding": conv(3, 5, padding=2, padding_mode="reflect"),
    "functional": lambda x: F.avg_pool2d(F.pad(F.relu(x) ** 2 + 1, (3, 0, 3, 0)), 3, stride=2, padding=1),
    "keywords": lambda x: F.avg_pool2d(input=F.pad(input=x, pad=(2, 2, 2, 2)), kernel_size=5, stride=3),
    "slices": lambda x: x[:, :, 3::2, 3::2] + 0.5 * x[..., 3::2, 3::2],
    "other order": in_other_order,
    "group shuffle": lambda x: x.view(1, 1, 3, SIDE, SIDE).transpose(1, 2).reshape(1, 3, SIDE, SIDE)[..., 5:, 5:],
    "space to depth": lambda x: F.pixel_unshuffle(x, 4),
    "adaptive": nn.AdaptiveAvgPool2d(5),
    "gate": lambda x: F.avg_pool2d(x, 4) * x.mean(dim=(2, 3), keepdim=True).detach(),
}


def traced(layers: Layers, image: Tensor) -> tuple[Tensor, Trace]:
    with TraceReceptiveFields(image):
        output = layers(image)
    trace = trace_of(output)
    assert trace is not None
    return output, trace


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_square_that_gradients_reach(name: str) -> None:
    image = torch.rand(1, 3, SIDE, SIDE, requires_grad=True)
    output, trace = traced(MODELS[name], image)
    assert trace.dims == (2, 3)
    for position in (output.shape[-1] // 2, output.shape[-1] // 2 - 1):
        (gradient,) = torch.autograd.grad(output[0, :, position, position].sum(), image, retain_graph=True)
        reached = gradient[0].abs().sum(dim=(0, 1)).nonzero()
        low, high = int(reached.min()), int(reached.max())
        for field in (trace.rows, trace.columns):
            assert field.start + position * field.jump == (low + high) / 2
            if name != "gate":  # every value depends on the whole image through the gate
                assert field.size == high - low + 1


@pytest.mark.parametrize(
    "layers",
    [
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=4),
        transposed(2, 2, 0),
        transposed(4, 2, 1),
    ],
    ids=["bilinear", "nearest", "transposed 2x2", "transposed 4x4"],
)
def test_enlarged_maps_keep_their_place(layers: nn.Module) -> None:
    """The mean place of what gradients reach, over the positions that lie between two pixels."""
    image = torch.rand(1, 3, SIDE, SIDE, requires_grad=True)
    output, trace = traced(layers, image)
    factor = output.shape[-1] // SIDE
    assert trace.rows.jump == 1 / factor
    middles = []
    for position in range(10 * factor, 11 * factor):
        (gradient,) = torch.autograd.grad(output[0, :, position, position].sum(), image, retain_graph=True)
        weights = gradient[0].sum(dim=(0, 1)).clamp_min(0)
        middles.append(float((weights * torch.arange(SIDE)).sum() / weights.sum()))
    expected = [trace.rows.start + position * trace.rows.jump for position in range(10 * factor, 11 * factor)]
    assert sum(middles) / factor == pytest.approx(sum(expected) / factor, abs=0.1)


@pytest.mark.parametrize(
    "layers",
    [
        lambda x: x.flip(-1),
        lambda x: x.flatten(2),
        lambda x: x.mean(dim=(2, 3)),
        lambda x: x @ torch.ones(SIDE, SIDE),
        nn.Linear(SIDE, SIDE),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)),
    ],
    ids=["flip", "flatten", "mean", "matmul", "linear over columns", "linear"],
)
def test_what_moves_or_mixes_positions_has_none_and_depends_on_everything(layers: Layers) -> None:
    _, trace = traced(layers, torch.rand(1, 3, SIDE, SIDE))
    assert trace.dims is None
    assert trace.size == SIDE


def test_chunks_and_concatenations_are_followed() -> None:
    def halves(x: Tensor) -> Tensor:
        first, second = F.avg_pool2d(x, 2).chunk(3, dim=1)[:2]
        return torch.cat([F.avg_pool2d(first, 3, stride=1, padding=1), second], dim=1)

    _, trace = traced(halves, torch.rand(1, 3, SIDE, SIDE))
    assert (trace.rows.size, trace.rows.jump, trace.rows.start) == (6, 2, 0.5)


def test_tensors_that_do_not_depend_on_the_image_have_no_trace() -> None:
    image = torch.rand(1, 3, SIDE, SIDE)
    with TraceReceptiveFields(image):
        other = torch.ones(3) * 2
        mixed = image * other.view(1, 3, 1, 1)
    assert trace_of(other) is None
    assert trace_of(mixed) == Trace()
