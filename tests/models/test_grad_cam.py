"""Grad-CAM: correct for a model with a known result, defined for every model, and shown by `report` and `predict`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate

from cifar10_accel.cli import main
from cifar10_accel.data.synthetic import draw_images
from cifar10_accel.errors import InputError
from cifar10_accel.models.grad_cam import feature_maps, heat_maps, overlay
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


def pixels_to_inputs(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A model whose strides round down (32, 31, 15, 7, 3), trained for seconds on the synthetic set."""
    torch.manual_seed(0)
    pixels, labels = draw_images(1000, seed=0, purpose="train")
    images, classes = pixels_to_inputs(pixels), torch.from_numpy(labels)
    model = build_model(Settings(model="airbench94", width=16), num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=200)
    for _ in range(200):
        rows = torch.randint(0, len(images), (50,))
        down, right = torch.randint(-3, 4, (2,)).tolist()
        optimizer.zero_grad()
        loss = cross_entropy(4 * model(images[rows].roll((down, right), (2, 3))), classes[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def occlusion_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return by how much the score falls if a grey square covers a pixel, the mean over the squares: (N, H, W)."""
    before = model(images).gather(1, classes[:, None])
    total, count = torch.zeros(len(images), 32, 32), torch.zeros(32, 32)
    for top in range(-4, 30, 4):
        for left in range(-4, 30, 4):
            square = (slice(max(top, 0), top + 8), slice(max(left, 0), left + 8))
            covered = images.clone()
            covered[:, :, *square] = images.mean(dim=(2, 3), keepdim=True)
            total[:, *square] += (before - model(covered).gather(1, classes[:, None]))[..., None]
            count[square] += 1
    return total / count


def correlation(maps: Tensor, others: Tensor) -> float:
    """Return the mean correlation over the images whose maps are not constant."""
    pairs = [
        torch.stack([a.flatten(), b.flatten()]) for a, b in zip(maps, others, strict=True) if a.std() * b.std() > 0
    ]
    assert len(pairs) > len(maps) / 2
    return float(torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean())


def test_maps_lie_where_covering_the_image_lowers_the_score(trained: nn.Module) -> None:
    """The 3x3 feature maps see the upper left three quarters; stretched over the image they would be misplaced."""
    pixels, _ = draw_images(60, seed=0, purpose="test")
    images = pixels_to_inputs(pixels)
    classes = trained(images).argmax(dim=1)
    expected = occlusion_maps(trained, images, classes)
    maps, scores = feature_maps(trained, images)
    assert (maps.rows.jump, maps.rows.start, maps.is_traced) == (8, 4, True)
    (gradient,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), maps.values)
    raw = (gradient.mean(dim=(2, 3), keepdim=True) * maps.values.detach()).sum(dim=1, keepdim=True).relu()
    assert raw.shape[2:] == (3, 3)
    stretched = correlation(interpolate(raw, size=32, mode="bilinear")[:, 0], expected)
    placed = correlation(heat_maps(trained, images, classes), expected)
    assert placed > stretched + 0.1
    assert placed > 0.4
    for shift in (-8, 8):  # by one position of the feature maps
        shifted = heat_maps(trained, images, classes).roll((shift, shift), (1, 2))
        assert placed > correlation(shifted, expected) + 0.1


def vision_transformer(side: int = 4) -> nn.Module:
    """Return patches of 8x8 pixels, one transformer layer, and the mean over the patches."""

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 32 // side, stride=32 // side)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head = nn.Linear(16, 10)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.head(self.layer(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1))
            return scores

    return Transformer().eval()


def mixer() -> nn.Module:
    """Return a model that mixes the patches of a sequence with linear layers only."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, stride=8),
        nn.Flatten(2),
        nn.Linear(16, 16),  # over the patches
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), vision_transformer(), mixer()],
    ids=["linear", "vision transformer", "mixer"],
)
def test_a_model_that_does_not_end_in_feature_maps_is_an_input_error(model: nn.Module) -> None:
    with pytest.raises(InputError, match="has no feature maps") as raised:
        heat_maps(model, torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))
    assert "\n" not in str(raised.value)
    assert not any(module._forward_hooks for module in model.modules())


class ChannelsLast(nn.Module):
    """Sums of the first channel, with the feature maps as (N, H, W, C) in a layer norm, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        total = self.layer(interpolate(images, scale_factor=0.25, mode="area").permute(0, 2, 3, 1)).mean(dim=(1, 2))
        return torch.cat([total[:, :1], -total[:, :1]], dim=1)


class Mirrored(nn.Module):
    """Feature maps after a flip, whose place is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.AvgPool2d(4)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layer(images.flip(-1)).mean(dim=(2, 3))
        return scores


def spot(size: int = 32, channels: int = 3) -> Tensor:
    """One image with a bright square in rows 4 to 7 and columns 20 to 23."""
    image = torch.zeros(1, channels, size, size)
    image[:, 0, 4:8, 20:24] = 1
    return image


def test_channels_may_be_last() -> None:
    heat = heat_maps(ChannelsLast(), spot(), torch.tensor([0]))
    assert divmod(int(heat[0].argmax()), 32) in [(row, column) for row in range(4, 8) for column in range(20, 24)]


def test_a_place_that_is_not_known_is_said(caplog: pytest.LogCaptureFixture) -> None:
    heat = heat_maps(Mirrored(), spot(), torch.tensor([0]))
    assert "the place of layer in the image is not known" in caplog.text
    assert heat.max() == 1
    caplog.clear()
    heat_maps(ChannelsLast(), spot(), torch.tensor([0]))
    assert not caplog.text


@pytest.mark.parametrize(("size", "channels"), [(20, 1), (45, 3), (96, 3)])
def test_images_of_any_size_and_frozen_models(size: int, channels: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).requires_grad_(False)
    heat = heat_maps(model, torch.rand(2, channels, size, size), torch.tensor([0, 1]))
    assert heat.shape == (2, size, size)
    assert feature_maps(model, torch.rand(1, channels, size, size))[0].layer == "2"


def test_a_classifier_with_its_own_pooling_and_layers_after_it() -> None:
    class Tall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 2))

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.head(adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1))
            return scores

    maps, _ = feature_maps(Tall(), torch.rand(1, 3, 32, 32))
    assert (maps.layer, tuple(maps.values.shape)) == ("conv", (1, 4, 32, 32))


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
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
