"""The nets: their exact sizes, what they compute, and what is said of them."""

import pytest
import torch
from torch import nn

from cifar10_accel.models import NETS, build
from cifar10_accel.models.summary import describe, layers_table, nets_table
from cifar10_accel.settings import Settings


def net(**settings: object) -> nn.Module:
    """A net of ten classes, always with the same weights."""
    torch.manual_seed(0)
    return build(Settings(**settings), num_classes=10)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"model": "custom_resnet"}, 6_573_120),
        ({"model": "custom_resnet", "head_bias": True}, 6_573_130),
        ({"model": "resnet18", "head_bias": True}, 11_173_962),
        ({"model": "depthwise_dilated"}, 892_672),
    ],
)
def test_parameter_counts(settings: dict[str, object], parameters: int) -> None:
    assert count(net(**settings)) == parameters


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "celu", "silu"])
def test_every_net_gives_logits_and_gradients(name: str, activation: str) -> None:
    model = net(model=name, activation=activation, width=8).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    logits = model(images)
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", NETS)
def test_one_image_and_bf16(name: str) -> None:
    model = net(model=name, width=8).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(image)
    assert torch.allclose(half.float(), model(image), atol=0.05)


@pytest.mark.parametrize("name", NETS)
def test_width_and_logit_scale_scale(name: str) -> None:
    assert count(net(model=name, width=32)) > 3 * count(net(model=name, width=16))
    image = torch.randn(2, 3, 32, 32)
    small, large = (net(model=name, width=8, logit_scale=scale).eval()(image) for scale in (0.125, 1.0))
    assert torch.allclose(8 * small, large, rtol=1e-4)


def test_flops_are_those_of_the_literature() -> None:
    """379.3 million multiply-adds forward for the 64-128-256-512 ResNet; 1 is counted as 2 FLOPs."""
    rows = describe(net())
    assert sum(row.flops for row in rows) / 2e6 == pytest.approx(379.3, abs=0.3)
    assert sum(row.parameters for row in rows) == 6_573_120


def test_flops_agree_with_torchs_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for name in NETS:
        model = net(model=name, width=16).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 32, 32))
        assert sum(row.flops for row in describe(model)) == pytest.approx(counter.get_total_flops(), rel=0.02), name


def test_the_receptive_field_is_what_an_output_depends_on() -> None:
    """Measured: which pixels change the middle of a feature map, against what the table says."""
    model = net(width=8).eval()
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: seen.setdefault(name, output))
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    model(image)
    checked = 0
    for row in describe(net(width=8)):
        output = seen.get(row.name)
        if output is None or output.ndim != 4 or row.receptive_field > 15 or "conv" not in row.kind.lower():
            continue
        middle = output.shape[-1] // 2
        (gradient,) = torch.autograd.grad(output[0, :, middle, middle].sum(), image, retain_graph=True)
        touched = gradient[0].abs().sum(dim=0).sum(dim=0).nonzero()
        assert int(touched.max() - touched.min()) + 1 <= row.receptive_field, row.name
        checked += 1
    assert checked >= 2


def test_the_tables_render() -> None:
    from rich.console import Console

    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(layers_table(Settings(), num_classes=10))
    console.print(nets_table(Settings(), num_classes=10))
    text = console.export_text()
    for part in ("6,573,120", "758", "resnet18", "depthwise_dilated"):
        assert part in text
