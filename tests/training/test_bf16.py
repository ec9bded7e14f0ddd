"""Mixed precision with bf16 on a CPU, with or without bf16 instructions: everything that is built in trains."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from trainings import bits_of

from cifar10_accel.data.loader import scaled_down
from cifar10_accel.models import small_image_conv
from cifar10_accel.models.layers import GlobalMaxPool
from cifar10_accel.models.registry import BACKBONES
from cifar10_accel.models.small_image_conv import weight_gradient
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import RunSettings, Settings, built_in_names
from cifar10_accel.train import fit

SMALL = {
    "precision": "bf16",
    "dataset": "synthetic",
    "synthetic_size": 100,
    "batch_size": 50,
    "eval_batch_size": 20,
    "width": 4,
    "epochs": 2,
    "compile": False,
    "num_threads": 1,
    "tracker": "none",
}
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="bf16 on a CPU")


def train(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    run = fit(Settings(**SMALL | {"run_dir": tmp_path / "run"} | changes))
    assert json.loads((run.path / "environment.json").read_text())["precision"] == "bf16"
    return run.summary


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes(recipe: str, tmp_path: Path) -> None:
    settings = Settings(recipe=recipe)
    # Both kinds of epoch, small images and full ones, where a recipe has small ones.
    low_res = {"low_res_fraction": 0.5} if settings.low_res_fraction else {}
    summary = train(tmp_path, recipe=recipe, **low_res)
    assert summary["step"] == 4
    assert 0 <= summary["test/accuracy"] <= 1


@pytest.mark.parametrize("model", BACKBONES)
def test_models(model: str, tmp_path: Path) -> None:
    train(tmp_path, recipe="smoke", model=model, whitening=True, identity_init=True, ema_decay=0.5, activation="gelu")


@pytest.mark.parametrize("tta", get_args(RunSettings.model_fields["tta"].annotation))
def test_every_form_of_tta(tta: str, tmp_path: Path) -> None:
    summary = train(tmp_path, recipe="smoke", tta=tta, mixup_alpha=1.0, cutmix_alpha=1.0)
    assert ("test/accuracy_tta" in summary) is (tta != "none")


@pytest.mark.parametrize("backend", ["batched", "albumentations"])
@pytest.mark.parametrize("augment", ["none", *built_in_names(Settings.model_fields["augment"])])
def test_every_augmentation(augment: str, backend: str, tmp_path: Path) -> None:
    given = {"pad_mode": "constant", "flip_mode": "alternating"}
    train(tmp_path, recipe="smoke", augment=augment, augment_backend=backend, epochs=1, **given)


@pytest.mark.parametrize("optimizer", built_in_names(Settings.model_fields["optimizer"]))
def test_every_optimizer(optimizer: str, tmp_path: Path) -> None:
    given = {"grad_accum_steps": 2, "grad_clip": 1.0, "class_weights": "balanced", "channels_last": False}
    train(tmp_path, recipe="smoke", optimizer=optimizer, epochs=1, **given)


@pytest.mark.parametrize("backend", ["batched", "albumentations"])
def test_small_images_of_both_augmentation_backends(backend: str, tmp_path: Path) -> None:
    train(tmp_path, recipe="smoke", augment_backend=backend, low_res_fraction=0.5, optimizer="muon")


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_small_images_side_by_side_train_in_bf16_only(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU with AMX the weight gradients of small images are computed in another way, in bf16 only."""
    calls = []

    def counted(*tensors: Tensor) -> Tensor:
        calls.append(tensors[0].shape)
        return weight_gradient(*tensors)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(small_image_conv, "weight_gradient", counted)
    fit(Settings(**SMALL | {"recipe": "smoke", "model": "airbench94", "run_dir": tmp_path, "precision": precision}))
    assert {tuple(shape[-2:]) for shape in calls} == ({(7, 7), (3, 3)} if precision == "bf16" else set())


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    given = {"recipe": "smoke", "optimizer": "muon", "ema_decay": 0.9, "log_every": 1}
    train(tmp_path, run_dir=tmp_path / "straight", **given)
    train(tmp_path, run_dir=tmp_path / "stopped", max_steps=3, **given)
    train(tmp_path, run_dir=tmp_path / "stopped", **given)
    straight, stopped = (bits_of(tmp_path / name) for name in ("straight", "stopped"))
    # A run that stops after `max_steps` is evaluated there, so it has another line of metrics.
    compared = [name for name in straight if not name.startswith("metrics.jsonl")]
    assert any("/model/" in name for name in compared)
    assert [name for name in compared if straight[name] != stopped[name]] == []


def test_small_images_are_those_of_float32_rounded() -> None:
    images = torch.randn(2, 3, 32, 32).bfloat16()
    assert torch.equal(scaled_down(images, 20), scaled_down(images.float(), 20).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_compiled_maximum_has_a_gradient(dtype: torch.dtype) -> None:
    """The activation before it is fused with it, and then not rounded to half precision."""
    torch._dynamo.reset()
    layers = nn.Sequential(nn.SiLU(), GlobalMaxPool())
    images = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    eager, compiled = images.clone().requires_grad_(), images.clone().requires_grad_()
    layers(eager).float().sum().backward()
    torch.compile(layers)(compiled).float().sum().backward()
    assert compiled.grad is not None
    assert eager.grad is not None
    assert torch.count_nonzero(compiled.grad) == 4 * 8
    assert torch.allclose(compiled.grad, eager.grad, rtol=1e-2, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("model", BACKBONES)
def test_compiled_models(model: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    train(tmp_path, recipe="smoke", model=model, compile=True, activation="silu", whitening=True, max_steps=2)
