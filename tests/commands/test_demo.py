"""The demo: its explanations, and the page itself in a headless browser."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from cifar10_accel.cli import main
from cifar10_accel.commands.demo import Explainer, Explanation
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.models.classifier import Classifier


@pytest.fixture(scope="module")
def address(run_folder: Path) -> Iterator[str]:
    """URL of a page that is served; at the end Ctrl-C has to stop it without an error message."""
    command = [sys.executable, "-m", "cifar10_accel", "demo", str(run_folder), "--images", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "serving at" in line), "")
        try:
            yield line.partition("serving at ")[2].split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()  # else the end of this context waits for it
    assert (process.returncode, "Traceback" in errors) == (0, False), errors


def test_a_training_image_is_its_own_nearest(run_folder: Path) -> None:
    explainer = Explainer.from_run(run_folder, num_images=10**6, data_dir=None)
    train_split = explainer.dataset.train
    for row in (0, 7, len(train_split) - 1):
        explanation = explainer.explain(train_split.images[row])
        cosine, name, number = explanation.nearest[0][1].split()
        assert (float(cosine), name) == (1.0, explainer.dataset.class_names[train_split.labels[row]])
        assert np.array_equal(train_split.images[int(number[1:])], train_split.images[row])
        assert sum(explanation.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert explanation.model_input.shape == explanation.heat.shape == (256, 256, 3)


def test_some_of_the_training_images_keep_their_numbers(run_folder: Path) -> None:
    explainer = Explainer.from_run(run_folder, num_images=10, data_dir=None)
    train_split = explainer.dataset.train
    for pixels, caption in explainer.explain(train_split.images[5]).nearest:
        assert np.array_equal(pixels[::8, ::8], train_split.images[int(caption.split("#")[1])])


def test_the_page_explains_images_and_requests_nothing_from_outside(address: str, tmp_path: Path) -> None:
    Image.new("CMYK", (90, 60), (200, 0, 0, 0)).save(tmp_path / "photo.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with Browser(tmp_path / "profile", width=390) as browser:
        browser.open(address)
        browser.wait_for("document.querySelectorAll('.grid-wrap button').length == 20")
        browser.value("document.querySelectorAll('.grid-wrap button')[3].click()")
        browser.wait_for("document.querySelectorAll('.grid-wrap button').length == 30")
        first = browser.value("document.body.innerText")
        assert re.search(r"\d%", first)
        browser.choose_file("input[type=file]", tmp_path / "photo.jpg")
        browser.wait_for(f"document.body.innerText.length > 100 && document.body.innerText != {first!r}")
        browser.wait_for("document.querySelector('input[type=file]') !== null")
        browser.choose_file("input[type=file]", tmp_path / "broken.png")
        browser.wait_for("document.body.innerText.includes('cannot be read as an image')")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        outside = [url for url in browser.requested if not url.startswith((address, "data:", "blob:", "about:"))]
        assert outside == []


def test_a_port_in_use_is_reported_in_one_line(address: str, run_folder: Path) -> None:
    port = address.rstrip("/").rpartition(":")[2]
    done = CliRunner().invoke(main, ["demo", str(run_folder), "--images=5", f"--port={port}"])
    assert (done.exit_code, f"port: {port} is in use" in done.output) == (2, True)


def test_without_gradio_the_error_names_the_package(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = CliRunner().invoke(main, ["demo", str(run_folder)])
    assert (done.exit_code, "pip install 'cifar10-accel[demo]'" in done.output) == (2, True)


@pytest.mark.parametrize(("size", "channels"), [(64, 3), (24, 1)])
def test_images_of_another_format(size: int, channels: int) -> None:
    """The page shows RGB images of about 256 pixels a side, whatever the model takes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, size, size, channels), dtype=np.uint8)
    data = (images, np.arange(30) % 3)
    dataset = Dataset(name="own", train=data, test=data, class_names=["a", "b", "c"])
    model = Classifier(
        model_settings={"width": 4}, class_names=["a", "b", "c"], images=dataset.image_format.to_json()
    ).eval()
    explanation = Explainer(model, dataset, num_images=30).explain(images[4])
    side = 256 // size * size
    pictures = [explanation.model_input, explanation.heat, *(picture for picture, _ in explanation.nearest)]
    assert all(picture is not None and picture.shape == (side, side, 3) for picture in pictures)
    assert explanation.nearest[0][1].endswith("#4")
    assert set(explanation.probabilities) == {"a", "b", "c"}


class Head(nn.Module):
    """A model of one layer, with what the demo needs of a Classifier."""

    class_names = ("a", "b")

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)  # as of an attention layer, which reads its weight and never calls it
        self.head = head
        self.last = nn.Linear(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1) if isinstance(self.head, nn.Linear) else images)
        return logits.flatten(1)

    def probabilities(self, pixels: Tensor) -> Tensor:
        return self(pixels.permute(0, 3, 1, 2) / 255).softmax(dim=1)


def explain(model: Any) -> Explanation:
    """Return the explanation of the first of four images by a model."""
    data = (np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), np.arange(4) % 2)
    dataset = Dataset(name="own", train=data, test=data, class_names=["a", "b"])
    model.image_format = dataset.image_format
    return Explainer(model, dataset, num_images=4).explain(data[0][0])


def test_a_model_without_feature_maps_has_no_heat_map() -> None:
    explanation = explain(Head(nn.Linear(3 * 8 * 8, 2)))
    assert explanation.heat is None
    assert explanation.nearest[0][1].startswith("1.00 a #0")


def test_a_model_without_a_linear_layer_has_no_nearest_images(capfd: pytest.CaptureFixture[str]) -> None:
    explanation = explain(Head(nn.Conv2d(3, 2, 8)))
    assert explanation.nearest == []
    assert sum(explanation.probabilities.values()) == pytest.approx(1)
    assert "no nearest training images: model: a Head uses no linear layer" in capfd.readouterr().err
