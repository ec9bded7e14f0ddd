"""Parameter groups, AdamW, and Muon: its steps for convolutions, and plain SGD for the rest."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from waiting import Watch

from cifar10_accel.models.registry import build_model
from cifar10_accel.settings import ModelSettings, OptimSettings
from cifar10_accel.training.optimization.muon import Muon, orthogonalized
from cifar10_accel.training.optimization.optimizer import make_optimizer, parameter_groups, set_lr


def airbench94() -> nn.Module:
    torch.manual_seed(0)
    settings = ModelSettings(model="airbench94", width=8, whitening=True, norm_scale=False)
    return build_model(settings, num_classes=10)


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_groups_hold_everything_trained_once(optimizer: str) -> None:
    model = airbench94()
    groups = parameter_groups(model, OptimSettings.model_validate({"optimizer": optimizer}))
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert len(groups) == (3 if optimizer == "muon" else 2)


class Scaled(nn.Module):
    """Convolutions of two kinds, and two parameters of four dimensions that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3))
        self.scale, self.position = nn.Parameter(torch.ones(1, 4, 1, 1)), nn.Parameter(torch.randn(1, 3, 8, 8))
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 3))


def test_muon_orthogonalizes_convolutions_alone() -> None:
    model = Scaled()
    groups = parameter_groups(model, OptimSettings(optimizer="muon", weight_decay=0.01))
    (filters,) = (group for group in groups if group.get("orthogonal"))
    assert {id(p) for p in filters["params"]} == {id(layer.weight) for layer in model.layers}
    weights = {id(p) for p in groups[0]["params"]}
    assert {id(model.scale), id(model.position), id(model.normed.parametrizations.weight.original)} == weights
    assert groups[0]["weight_decay"] == 0.01


def test_lr_factors_do_not_change_the_decay_of_a_step() -> None:
    settings = OptimSettings(optimizer="muon", bias_lr_factor=64, conv_lr_factor=0.25, weight_decay=0.01)
    optimizer = make_optimizer(airbench94(), settings)
    set_lr(optimizer, 2.0)
    weights, biases, filters = optimizer.param_groups
    assert (weights["lr"], biases["lr"], filters["lr"]) == (2.0, 128.0, 0.5)
    assert weights["lr"] * weights["weight_decay"] == pytest.approx(biases["lr"] * biases["weight_decay"])
    assert filters["weight_decay"] == 0


def test_decay_of_biases_can_be_off() -> None:
    _, biases = parameter_groups(airbench94(), OptimSettings(decay_norm_and_bias=False))
    assert biases["weight_decay"] == 0


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_orthogonalized_keeps_directions_and_levels_sizes(shape: tuple[int, int]) -> None:
    """The singular vectors stay, the singular values come near one, whatever the scale."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, sizes, vh = torch.linalg.svd(matrix, full_matrices=False)
    levelled = u.T @ orthogonalized(matrix) @ vh.T
    assert (levelled - levelled.diag().diag()).abs().max() < 1e-10
    large = sizes > 0.1 * sizes.max()
    assert levelled.diag()[large].min() > 0.5
    assert levelled.diag().max() < 1.3
    torch.testing.assert_close(orthogonalized(1e3 * matrix), orthogonalized(matrix), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 216), (64, 576), (256, 576), (256, 2304)])
def test_orthogonalized_in_bf16_is_that_in_float32_up_to_rounding(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact, rounded = orthogonalized(matrix), orthogonalized(matrix.bfloat16()).float()
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.03
    sizes, exact_sizes = (torch.linalg.svdvals(each) for each in (rounded, exact))
    torch.testing.assert_close(sizes, exact_sizes, rtol=0, atol=0.03)


def convolution(weight: Tensor) -> nn.Conv2d:
    """A layer with this weight, (8, 4, 3, 3)."""
    layer = nn.Conv2d(4, 8, 3, bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def test_muons_products_are_bf16_only_if_asked_for() -> None:
    before = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        layer = convolution(before)
        filters = layer.weight
        filters.grad = gradient.clone()
        optimizer = make_optimizer(layer, OptimSettings(optimizer="muon"), muon_dtype=dtype)
        set_lr(optimizer, 0.1)
        optimizer.step()
        results.append(filters.detach())
        assert filters.dtype == torch.float32
    assert not torch.equal(*results)
    torch.testing.assert_close(*results, rtol=0, atol=0.01)


def test_the_relative_size_of_muons_step_is_the_lr_for_any_gradient() -> None:
    filters = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = Muon([{"params": [filters], "orthogonal": True}], lr=0.1, momentum=0.6, nesterov=True)
    for scale in (1e-6, 1.0, 1e6):
        before = filters.detach() * len(filters) ** 0.5 / filters.detach().norm()
        filters.grad = scale * torch.randn(filters.shape, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        moved = (filters.detach() - before).norm() / before.norm()
        assert 0.08 < moved < 0.12


@pytest.mark.parametrize("together", [False, True])
def test_muon_trains_weights_that_are_zero_at_first(together: bool) -> None:
    layer = convolution(torch.zeros(8, 4, 3, 3))
    filters = layer.weight
    optimizer = make_optimizer(layer, OptimSettings(optimizer="muon"), fused=together)
    assert optimizer.param_groups[0]["orthogonal"]
    if together:
        optimizer.found_inf, optimizer.grad_scale = torch.zeros(1), torch.ones(1)
    set_lr(optimizer, 1.0)
    for _ in range(2):
        filters.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert 0 < filters.norm() < 10


def test_momentum_of_the_rest_does_not_decide_on_nesterov_of_convolutions() -> None:
    for nesterov in (True, False):
        settings = OptimSettings(optimizer="muon", momentum=0.0, nesterov=nesterov)
        filters = make_optimizer(airbench94(), settings).param_groups[2]
        assert (filters["momentum"], filters["nesterov"]) == (settings.conv_momentum, nesterov)


def test_muon_leaves_the_rest_to_sgd() -> None:
    weights = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    ours = Muon([{"params": [weights[0]]}], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    theirs = torch.optim.SGD([weights[1]], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for step in range(3):
        for weight in weights:
            weight.grad = torch.full((3, 2), float(step + 1))
        ours.step()
        theirs.step()
    assert torch.equal(*weights)


def test_adamw_is_torchs_with_the_momentum_as_its_first_beta_and_decoupled_decay() -> None:
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[0].load_state_dict(layers[1].state_dict())
    ours = make_optimizer(layers[0], OptimSettings(optimizer="adamw", momentum=0.8, weight_decay=0.1))
    set_lr(ours, 0.05)
    theirs = torch.optim.AdamW(layers[1].parameters(), lr=0.05, betas=(0.8, 0.999), weight_decay=0.1)
    for gradient in (1.0, -3.0, 2.0):
        for layer, optimizer in zip(layers, (ours, theirs), strict=True):
            for parameter in layer.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
    torch.testing.assert_close(layers[0].state_dict(), layers[1].state_dict())


def _trained(optimizer: str, *, steps: Sequence[str], scaled: bool) -> tuple[list[Tensor], list[str]]:
    """Return the weights of a small model after these steps, and the operations that synchronised."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 2))
    images = torch.randn(8, 3, 4, 4)
    stepper = make_optimizer(model, OptimSettings.model_validate({"optimizer": optimizer}), fused=True)
    set_lr(stepper, 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=scaled)
    with Watch() as watch:
        for step in steps:
            loss = model(images).square().mean() * (float("inf") if step == "overflow" else 1)
            scaler.scale(loss).backward()
            if step == "clipped":
                scaler.unscale_(stepper)
            scaler.step(stepper)
            scaler.update(2.0**16)
            stepper.zero_grad()
    return list(model.parameters()), watch.waited_for


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_a_loss_scaler_changes_nothing_skips_overflows_and_never_waits(optimizer: str) -> None:
    """The initial scale is high, so that the first step overflows."""
    expected, _ = _trained(optimizer, steps=3 * ["normal"], scaled=False)
    for steps in (3 * ["normal"], 3 * ["clipped"], ["overflow", "normal", "normal", "overflow", "normal"]):
        found, waited_for = _trained(optimizer, steps=steps, scaled=True)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert waited_for == []


@pytest.mark.parametrize("nesterov", [True, False])
def test_convolutions_updated_together_end_like_those_updated_one_by_one(nesterov: bool) -> None:
    """Of different shapes and in either memory format; on a GPU they are updated together, on a CPU one by one."""
    together, one_by_one = (airbench94().to(memory_format=torch.channels_last) for _ in range(2))
    together.load_state_dict(one_by_one.state_dict())
    settings = OptimSettings(optimizer="muon", nesterov=nesterov)
    optimizers = [make_optimizer(together, settings, fused=True), make_optimizer(one_by_one, settings)]
    optimizers[0].found_inf, optimizers[0].grad_scale = torch.zeros(1), torch.tensor(4.0)
    for seed in range(3):
        for model, optimizer, scale in zip((together, one_by_one), optimizers, (4, 1), strict=True):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = scale * torch.randn_like(parameter) if parameter.ndim == 4 else None
            set_lr(optimizer, 0.5)
            optimizer.step()
    for ours, theirs in zip(together.parameters(), one_by_one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    optimizers[0].found_inf.fill_(1)
    before = [parameter.clone() for parameter in together.parameters()]
    for parameter in together.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf) if parameter.ndim == 4 else None
    optimizers[0].step()
    assert all(torch.equal(now, then) for now, then in zip(together.parameters(), before, strict=True))
