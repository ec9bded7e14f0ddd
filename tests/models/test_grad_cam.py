"""Grad-CAM: correct for a model with a known result, defined for every model, and shown by `report` and `predict`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from cifar10_accel.cli import main
from cifar10_accel.errors import InputError
from cifar10_accel.models.grad_cam import heat_maps, overlay
from cifar10_accel.models.registry import BACKBONES, build_model
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.settings import Settings


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200"})


class Sums(nn.Module):
    """Model whose score of class 0 is the mean of the first channel, and of class 1 its negative, after a 4x4 pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.all = nn.AdaptiveAvgPool2d(1)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        total = self.all(self.pool(images * self.scale)).flatten(1)[:, :1]
        return torch.cat([total, -total], dim=1)


def test_it_finds_the_pixels_that_raise_a_score() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, 4:8, 20:24] = 1
    images[:, 1] = 5  # no score depends on it
    heat = heat_maps(Sums(), images, torch.tensor([0, 1]))
    assert heat.shape == (2, 32, 32)
    row, column = divmod(int(heat[0].argmax()), 32)
    assert 4 <= row < 8
    assert 20 <= column < 24
    assert heat[0].max() == 1
    assert heat[0, 12:].max() == 0
    assert heat[1].max() == 0  # every pixel lowers the score


@pytest.mark.parametrize("name", BACKBONES)
def test_every_model_has_feature_maps(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(Settings(model=name, width=4), num_classes=10).eval()
    images, classes = torch.randn(70, 3, 32, 32), torch.arange(70) % 10
    heat = heat_maps(model, images, classes)
    assert heat.shape == (70, 32, 32)
    assert heat.min() >= 0
    strongest = heat.amax(dim=(1, 2))
    assert torch.logical_or(torch.isclose(strongest, torch.ones(())), strongest == 0).all()
    assert (strongest > 0).sum() > 35
    assert torch.allclose(heat_maps(model, images[:3], classes[:3]), heat[:3], atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_feature_maps_is_an_input_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(InputError, match="Sequential has no feature maps"):
        heat_maps(model, torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))


def test_overlay_is_blue_where_cold_and_yellow_where_hot() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    heat = np.zeros((32, 32), dtype=np.float32)
    heat[:, 16:] = 1
    mixed = overlay(image, heat).astype(int)
    assert mixed.shape == image.shape
    assert (mixed[:, :16, 2] > mixed[:, :16, 0]).all()
    assert (mixed[:, 16:, 0] > mixed[:, 16:, 2]).all()


def test_a_report_shows_heat_maps_of_mistakes(run_folder: Path) -> None:
    assert 'id="grad-cam"' not in (run_folder / "report.html").read_text()
    done = call("report", run_folder, "--grad-cam")
    assert done.exit_code == 0, done.output
    page = (run_folder / "report.html").read_text()
    mistakes = int((~Predictions.load(run_folder / "predictions.npz").correct).sum())
    assert page.count('class="tile of-grad-cam"') == 3 * min(mistakes, 24) > 0
    assert call("report", "--wandb=me/p", "--grad-cam").exit_code == 2


def test_predicting_writes_pictures(run_folder: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (50, 40), "red").save(tmp_path / folder / "same.png")
    (tmp_path / "bad.png").write_text("no image")
    paths = [tmp_path / "a" / "same.png", tmp_path / "bad.png", tmp_path / "b" / "same.png"]
    done = call("predict", run_folder, *paths, "--skip-bad", "--grad-cam", tmp_path / "out", "--format=csv")
    assert done.exit_code == 0, done.output
    written = sorted((tmp_path / "out").iterdir())
    name = done.stdout.splitlines()[1].split(",")[2]
    assert [path.name for path in written] == [f"same-{name}-2.png", f"same-{name}.png"]
    with Image.open(written[0]) as picture:
        assert picture.size == (512, 256)
    (tmp_path / "file").touch()
    done = call("predict", run_folder, paths[0], "--grad-cam", tmp_path / "file")
    assert done.exit_code == 5
    assert done.stderr.count("\n") == 1
