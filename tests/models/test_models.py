"""Models: sizes, shapes, gradients, memory formats; and the layer table against independent counts."""

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.models.layers import Whitening
from cifar10_accel.models.registry import ACTIVATIONS, BACKBONES, build_model, fit_whitening
from cifar10_accel.models.summary import describe, layers_table, models_table
from cifar10_accel.settings import ModelSettings, built_in_names

WIDTH = 8  # enough for everything but the counts


def make(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSettings.model_validate({"width": WIDTH} | settings), num_classes=10)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def images(number: int) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=sorted(BACKBONES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_settings_name_every_model_and_activation() -> None:
    fields = ModelSettings.model_fields
    assert set(built_in_names(fields["model"])) == set(BACKBONES)
    assert set(fields["activation"].annotation.__args__) == set(ACTIVATIONS)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet9", 6_573_120),
        ("resnet18", 11_173_952),
        ("depthwise_dilated", 892_672),
        ("airbench94", 1_972_792),
        ("airbench96", 3_190_456),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    assert count(make(model=name, width=64, head_bias=False)) == parameters
    assert count(make(model=name, width=64, head_bias=True)) == parameters + 10


def test_width_scales_every_stage(name: str) -> None:
    narrow, wide = (
        {key: p.shape for key, p in make(model=name, width=width).named_parameters()} for width in (WIDTH, 3 * WIDTH)
    )
    fixed = {1, 2, 3, 10, 24}  # depthwise groups, kernel sides, colours, classes, airbench94's stem
    for key, shape in narrow.items():
        for small, large in zip(shape, wide[key], strict=True):
            assert large == (small if small in fixed else 3 * small), key


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_forward_and_gradients_are_finite(name: str, activation: str) -> None:
    model = make(model=name, activation=activation)
    logits = model(images(4))
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), f"{key} has no gradient"


def test_activation_is_that_of_the_settings(name: str) -> None:
    kinds = {type(m) for m in make(model=name, activation="celu").modules()} & {nn.ReLU, nn.GELU, nn.CELU, nn.SiLU}
    assert kinds == {nn.CELU}
    assert {m.alpha for m in make(model=name, activation="celu").modules() if isinstance(m, nn.CELU)} == {0.075}


def test_logit_scale_is_a_factor(name: str) -> None:
    plain, scaled = make(model=name, logit_scale=1.0).eval(), make(model=name, logit_scale=0.25).eval()
    assert torch.equal(scaled(images(2)), plain(images(2)) * 0.25)


def test_same_seed_same_weights(name: str) -> None:
    first, second = make(model=name).state_dict(), make(model=name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_image_by_image_and_channels_last_agree_with_the_batch(name: str) -> None:
    model = make(model=name).eval()
    with torch.no_grad():
        batch = model(images(3))
        one_by_one = torch.cat([model(image[None]) for image in images(3)])
        nhwc = model.to(memory_format=torch.channels_last)(images(3).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(one_by_one, batch)
    torch.testing.assert_close(nhwc, batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_trains(name: str, dtype: torch.dtype) -> None:
    model = make(model=name, width=4)  # small: half-precision convolutions are slow on most CPUs
    with torch.autocast("cpu", dtype=dtype):
        logits = model(images(2))
    assert logits.dtype == dtype
    F.cross_entropy(logits.float(), torch.arange(2)).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_traces_as_one_graph(name: str) -> None:
    model = make(model=name).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(2)), model(images(2)))


def test_resnet9_pools_before_the_norm_and_adds_after_the_activation() -> None:
    model = make(model="resnet9")
    order = [type(layer) for layer in model.get_submodule("backbone.layer2")]
    assert order == [nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU]
    residual = model.get_submodule("backbone.layer3.1")
    x = torch.randn(2, 8 * WIDTH, 4, 4)
    assert (residual.eval()(x) - x >= -1e-6).all()  # the residual is added after its last ReLU


def test_training_on_one_batch_lowers_its_loss(name: str) -> None:
    model = make(model=name)
    x, labels = images(8), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_resnet9_flops() -> None:
    flops = sum(row.flops for row in describe(make(model="resnet9", width=64)))
    assert round(flops / 2 / 1e6, 1) == 379.3
    assert round(flops / 1e9, 4) == 0.7585


def test_rows_agree_with_torch(name: str) -> None:
    model = make(model=name, head_bias=True)
    rows = describe(model)
    with FlopCounterMode(display=False) as counter:
        model(images(1).expand(2, 3, 32, 32))
    assert sum(row.flops for row in rows) == counter.get_total_flops() // 2
    assert sum(row.parameters for row in rows) == count(model)
    assert rows[-1].output_shape == (10,)


def test_describe_leaves_the_model_alone(name: str) -> None:
    model = make(model=name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    describe(model)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_receptive_field_is_what_gradients_reach() -> None:
    """The middle of a map depends on exactly the pixels of its receptive field (weights of 1, so nothing cancels)."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
    )
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    x = images(1).requires_grad_()
    model(x)[0, :, 4, 4].sum().backward()
    assert x.grad is not None
    reached = x.grad[0, 0].abs() > 0
    sides = reached.any(dim=0).sum().item(), reached.any(dim=1).sum().item()
    assert sides == (19, 19)
    assert [row.receptive_field for row in describe(model)] == [3, 7, 9, 11, 19]


def test_receptive_field_of_resnet9_is_what_gradients_reach() -> None:
    """The first two maps of ResNet-9, with its norms and activations in between."""
    model = make(model="resnet9").eval()
    x = images(1).requires_grad_()
    stem, convolution = model.get_submodule("stem"), model.get_submodule("backbone.layer1.0.0")
    maps = {"stem.0": stem(x), "backbone.layer1.0.0": convolution(stem(x))}
    expected = {row.name: row.receptive_field for row in describe(model)}
    for name, values in maps.items():
        (gradient,) = torch.autograd.grad(values[0, :, 16, 16].sum(), x, retain_graph=True)
        reached = gradient[0].abs().sum(dim=(0, 1)).nonzero()
        assert reached.max() - reached.min() + 1 == expected[name], name


def test_receptive_field_is_that_of_the_longest_path() -> None:
    class TwoPaths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 5, padding=2), nn.Conv2d(6, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            far: Tensor = self.last(torch.cat([self.near(x), F.relu(self.far(x))], dim=1))
            return far

    assert [row.receptive_field for row in describe(TwoPaths())] == [1, 5, 7]


def test_functional_layers_count_and_any_image_will_do() -> None:
    """A model of its own: grayscale, 20 pixels a side, with pools and a shortcut that are no modules."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.first(x), 2)
            logits: Tensor = self.head((x + F.relu(self.second(x))).mean(dim=(2, 3)))
            return logits

    rows = {row.name: row for row in describe(Functional(), size=20, channels=1)}
    assert rows["first"].output_shape == (4, 18, 18)
    assert rows["first"].flops == 2 * 4 * 18 * 18 * 9
    assert [rows[name].receptive_field for name in ("first", "second", "head")] == [3, 8, 8 + 8 * 2]
    assert rows["head"].flops == 2 * 4 * 7


def test_every_parameter_of_a_foreign_model_is_counted_once() -> None:
    """A parameter beside submodules, a layer used twice, and an attention whose projection is never called."""

    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(16, 8))
            self.patches, self.shared = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 8)
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.shared(self.shared(self.patches(x).flatten(2).mT + self.place))
            logits: Tensor = self.head(self.attention(x, x, x)[0].mean(dim=1))
            return logits

    model = Foreign()
    rows = describe(model)
    assert sum(row.parameters for row in rows) == count(model)
    assert [row.name for row in rows if row.name == "shared"] == ["shared"] * 2
    assert rows[-1].name == "others"


def test_tables_are_of_the_images_that_are_given() -> None:
    large = ImageFormat(64, 1, (0.5,), (0.25,))
    text = io.StringIO()
    console = Console(file=text, width=80)
    console.print(layers_table(ModelSettings(), num_classes=120, image_format=large))
    console.print(models_table(ModelSettings(), num_classes=120, image_format=large))
    assert "one 64x64 image" in text.getvalue()
    assert "64x64x64" in text.getvalue()  # channels, rows and columns of the first layer
    assert "61,440" in text.getvalue()  # 512 channels to 120 classes


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "depthwise_dilated", "airbench96"])
def test_every_value_before_the_global_pool_depends_on_the_whole_image(name: str) -> None:
    last_conv = [row for row in describe(make(model=name)) if "Conv2d" in row.kind][-1]
    assert last_conv.receptive_field >= 2 * 32 - 1  # from corner to corner


def test_depthwise_dilated_is_depthwise_dilated_and_small() -> None:
    model = make(model="depthwise_dilated", width=64, head_bias=True)
    spatial = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(conv.groups == conv.in_channels for conv in spatial[1:])
    assert any(conv.dilation == (2, 2) for conv in spatial)
    assert count(model) < 1_000_000


def test_tables_fit_a_narrow_terminal() -> None:
    text = io.StringIO()
    console = Console(file=text, width=80)
    for name in BACKBONES:
        console.print(layers_table(ModelSettings.model_validate({"model": name}), num_classes=10))
    console.print(models_table(ModelSettings(), num_classes=10))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text.getvalue()
    for figure in ("6,573,120", "11,173,952", "892,672", "758.5"):
        assert figure in text.getvalue()


def test_airbench94_flops() -> None:
    flops = sum(row.flops for row in describe(make(model="airbench94", width=64)))
    assert round(flops / 2 / 1e6, 1) == 118.1


def test_whitening_gives_uncorrelated_channels_of_equal_variance(name: str) -> None:
    """Checked on the images it was fitted to, which are smoothed so that neighbouring pixels correlate."""
    smooth = F.avg_pool2d(images(200), 5, stride=1, padding=2)
    model = make(model=name, whitening=True, norm_gain=2)
    fit_whitening(model, smooth)
    (layer,) = [module for module in model.modules() if isinstance(module, Whitening)]
    assert layer.bias is None or (layer.bias == 2).all()
    layer.padding, layer.bias = (0, 0), None
    outputs = layer(smooth).transpose(0, 1).flatten(1) / 2
    half = len(outputs) // 2 if layer.both_signs else len(outputs)
    covariance = outputs[:half].cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 0.02
    assert covariance.diag().min() > 0.3  # the smallest components are amplified less
    assert covariance.diag().max() < 1.01
    assert torch.equal(outputs[half:], -outputs[: len(outputs) - half])


def test_whitening_is_not_trained_but_saved(name: str) -> None:
    model = make(model=name, whitening=True)
    fixed = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    (stem,) = [key for key, module in model.named_modules() if isinstance(module, Whitening)]
    assert fixed
    assert fixed == {key for key in model.state_dict() if key.startswith(stem)}
    model(images(2)).sum().backward()
    assert all(model.get_parameter(key).grad is None for key in fixed)


@pytest.mark.parametrize("size", [16, 24])
def test_models_take_smaller_images(name: str, size: int) -> None:
    logits = make(model=name)(images(2)[..., :size, :size])
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet9", "airbench94"])
def test_identity_init_passes_inputs_on(name: str) -> None:
    plain, identity = make(model=name), make(model=name, identity_init=True)
    banks = [layer for layer in identity.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels >= WIDTH]
    assert banks
    for bank in banks:
        x = torch.randn(1, bank.in_channels, 5, 5)
        assert torch.equal(bank(x)[:, : bank.in_channels], x[:, : bank.out_channels])
    first = next(parameter for parameter in plain.parameters() if parameter.ndim == 4)
    assert torch.equal(first, next(parameter for parameter in identity.parameters() if parameter.ndim == 4))


def test_fixed_norm_scale_is_not_trained(name: str) -> None:
    model = make(model=name, norm_scale=False, norm_gain=1.7)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert all(not norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    assert all((norm.weight == torch.tensor(1.7)).all() for norm in norms)
