"""Local web page with the predictions of a trained run: probabilities, Grad-CAM and nearest training images."""

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from cifar10_accel.commands.predict import enlarged, with_heat_map
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.image_files import read_image
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.models.features import NearestNeighbours, features
from cifar10_accel.models.grad_cam import heat_maps
from cifar10_accel.runs.run_folder import locate_checkpoint
from cifar10_accel.runs.saved_run import SavedRun

if TYPE_CHECKING:
    import gradio

NUM_NEAREST = 10
NUM_EXAMPLES = 20  # test images to choose from
# Gradio's default theme without its fonts, which it loads from the network.
FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
CSS = """
img { image-rendering: pixelated }
.grid-wrap { min-height: 0 !important; max-height: none !important }
.grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important }
.caption-label { font-size: 10px !important; padding: 2px 4px !important; max-width: 100% !important }
.caption-label { white-space: normal !important }
"""

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Captioned = list[tuple[Pixels, str]]


@dataclass(frozen=True)
class Explanation:
    """The prediction for one image, and what it is based on."""

    probabilities: dict[str, float]
    model_input: Pixels  # its pixels, enlarged, as RGB
    heat: Pixels | None  # the same in gray, with Grad-CAM for the most probable class; None without feature maps
    nearest: Captioned  # training images, nearest first; none if the model uses no linear layer


class Explainer:
    """Predicts images with one run and explains the predictions."""

    def __init__(self, model: Classifier, dataset: Dataset, *, num_images: int) -> None:
        self.dataset, self.image_format = dataset, model.image_format
        self._model = model
        self._training_images: NearestNeighbours | None = None
        try:
            self._training_images = NearestNeighbours(model, dataset.train, num_images=num_images)
        except InputError as error:
            logger.warning("no nearest training images: %s", error)

    @classmethod
    def from_run(cls, source: Path, *, num_images: int, data_dir: Path | None) -> "Explainer":
        """Load a run folder or checkpoint, and compute the features of at most `num_images` of its training images.

        Raises:
            InputError: `source` is not a run, or its data set is missing.
        """
        run = SavedRun.load(locate_checkpoint(source)[0].path, data_dir=data_dir)
        return cls(Classifier.from_run(source), run.dataset(), num_images=num_images)

    def explain(self, pixels: Pixels) -> Explanation:
        """Return the prediction for uint8 pixels of the model's format, (H, W, C)."""
        inputs = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2) / 255
        probabilities = self._model.probabilities(torch.from_numpy(pixels)[None])[0]
        return Explanation(
            dict(zip(self._model.class_names, probabilities.tolist(), strict=True)),
            enlarged(pixels),
            self._heat(pixels, inputs, probabilities.argmax()),
            self._nearest(inputs),
        )

    def examples(self) -> Captioned:
        """Return test images at equal distances, each with its class."""
        test = self.dataset.test
        rows = np.linspace(0, len(test) - 1, min(NUM_EXAMPLES, len(test))).round().astype(int)
        return [(test.images[row], self.dataset.class_names[test.labels[row]]) for row in rows]

    def _heat(self, pixels: Pixels, inputs: torch.Tensor, label: torch.Tensor) -> Pixels | None:
        try:
            return with_heat_map(pixels, heat_maps(self._model, inputs, label[None])[0])
        except InputError:  # not of every model: a vision transformer has no feature maps
            return None

    def _nearest(self, inputs: torch.Tensor) -> Captioned:
        if self._training_images is None:
            return []
        train = self.dataset.train
        index, cosines = self._training_images.query(features(self._model, inputs)[0], count=NUM_NEAREST)
        names = [self.dataset.class_names[label] for label in train.labels[index]]
        return [
            (enlarged(image), f"{cosine:.2f} {name} #{number}")
            for image, name, number, cosine in zip(train.images[index], names, index, cosines, strict=True)
        ]


def page(explainer: Explainer, *, title: str) -> "gradio.Blocks":
    """Return the page: an image is dropped or chosen from the test set, and its explanation is shown beside it."""
    import gradio

    examples, takes = explainer.examples(), explainer.image_format

    def show(pixels: Pixels) -> list[Any]:
        explanation = explainer.explain(pixels)
        return [explanation.probabilities, explanation.model_input, explanation.heat, explanation.nearest]

    def show_file(path: str) -> list[Any]:
        try:
            pixels = read_image(Path(path), takes.size, takes.channels)
            return [None, *show(pixels)]  # None empties the file input, so that it takes the next
        except InputError as error:
            gradio.Warning(str(error).replace(path, Path(path).name))
            return [None, *[gradio.skip()] * 4]

    def show_example(chosen: gradio.SelectData) -> list[Any]:
        return show(examples[chosen.index][0])

    plain: dict[str, Any] = {"format": "png", "buttons": [], "show_label": False, "height": "auto"}
    blocks = gradio.Blocks(title=title, analytics_enabled=False)
    with blocks:
        gradio.Markdown(f"## {title}\nNothing leaves this machine. {_preparation(takes)}")
        with gradio.Row():
            with gradio.Column():
                dropped = gradio.File(label="Drop an image here, or click", file_types=["image"], height=140)
                gradio.Markdown("or choose one of the test set")
                tiles = [(enlarged(pixels), name) for pixels, name in examples]
                chosen = gradio.Gallery(tiles, allow_preview=False, **plain)
            with gradio.Column():
                label = gradio.Label(label="Probabilities", num_top_classes=5)
                gradio.Markdown("The input of the model, and the regions that the prediction is based on (Grad-CAM)")
                with gradio.Row():
                    model_input = gradio.Image(interactive=False, min_width=120, **plain)
                    heat = gradio.Image(interactive=False, min_width=120, **plain)
        gradio.Markdown("Nearest training images by features of the model: cosine, class and index")
        nearest = gradio.Gallery(allow_preview=False, **plain)
        outputs = [label, model_input, heat, nearest]
        dropped.upload(show_file, dropped, [dropped, *outputs], show_progress="hidden")
        chosen.select(show_example, None, outputs, show_progress="hidden")
    return blocks


def _preparation(takes: ImageFormat) -> str:
    gray = "" if takes.channels == 3 else " in grayscale"
    return f"Images are cropped to a square of {takes.size} pixels a side{gray}."


def demo(source: Path, *, num_images: int, data_dir: Path | None, port: int | None) -> None:
    """Serve the page to this machine only, until Ctrl-C.

    Args:
        source: A run folder or a checkpoint in one.
        num_images: Training images to search for the nearest ones, at equal distances.
        data_dir: Folder of the data set, if it is not where the run had it.
        port: Of the page; None for the first free one from 7860.

    Raises:
        SettingsError: Gradio is not installed, or the port is taken.
        InputError: `source` is not a run, or its data set is missing.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # before the import
    try:
        import gradio
    except ModuleNotFoundError:
        raise SettingsError("demo: Gradio is not installed; pip install 'cifar10-accel[demo]'") from None
    name = locate_checkpoint(source)[0].name()
    blocks = page(Explainer.from_run(source, num_images=num_images, data_dir=data_dir), title=f"Predictions of {name}")
    try:
        _, address, _ = blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            css=CSS,
            theme=gradio.themes.Default(**FONTS),
            footer_links=[],
            ssr_mode=False,
        )
    except OSError:
        raise SettingsError(f"port: {port} is in use; give another --port, or none for a free one") from None
    print(f"{name}: serving at {address} (Ctrl-C to stop)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        blocks.close()
