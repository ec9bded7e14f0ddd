"""Mixed precision with bf16 on a CPU, with or without bf16 instructions: every recipe, model and form of TTA trains."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from cifar10_accel.data.loader import scaled_down
from cifar10_accel.models.registry import BACKBONES
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import RunSettings, Settings
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
    return fit(Settings(**SMALL | {"run_dir": tmp_path / "run"} | changes)).summary


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
def test_small_images_of_both_augmentation_backends(backend: str, tmp_path: Path) -> None:
    train(tmp_path, recipe="smoke", augment_backend=backend, low_res_fraction=0.5, optimizer="muon")


def test_small_images_are_those_of_float32_rounded() -> None:
    images = torch.randn(2, 3, 32, 32).bfloat16()
    assert torch.equal(scaled_down(images, 20), scaled_down(images.float(), 20).bfloat16())
