"""A small local web page that shows what a trained run says of an image, and why."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cifar10_accel import classifier
from cifar10_accel.data.cifar10 import Dataset
from cifar10_accel.data.folder import read_image
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.grad_cam import heat_maps, overlay
from cifar10_accel.nearest import Nearest, features
from cifar10_accel.past_run import PastRun
from cifar10_accel.run_folder import locate_checkpoint

if TYPE_CHECKING:
    import gradio

ENLARGED = 8  # times: 32 pixels would be a stamp
NUM_NEAREST = 10
NUM_EXAMPLES = 20  # test images to choose from
# Gradio's own look without its fonts, which come from the network.
FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
CSS = """
img { image-rendering: pixelated }
.grid-wrap { min-height: 0 !important; max-height: none !important }
.grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important }
.caption-label { font-size: 10px !important; padding: 2px 4px !important; max-width: 100% !important }
.caption-label { white-space: normal !important }
"""

Pixels = npt.NDArray[np.uint8]
Captioned = list[tuple[Pixels, str]]


@dataclass(frozen=True)
class Answer:
    """What there is to say of one image."""

    probabilities: dict[str, float]
    seen: Pixels  # the 32x32 pixels that the net got, enlarged
    heat: Pixels  # the same in grey, with Grad-CAM for the most probable class over it
    nearest: Captioned  # training images, nearest first


class Guide:
    """Answers about images from one run."""

    def __init__(self, net: classifier.Classifier, dataset: Dataset, *, num_images: int) -> None:
        self.dataset = dataset
        self._net = net
        self._training_images = Nearest(net, dataset.train, num_images=num_images)

    @classmethod
    def of_run(cls, source: Path, *, num_images: int, data_dir: Path | None) -> "Guide":
        """From a run folder or checkpoint; looks at `num_images` of its training images. `InputError` without them."""
        net, folder = classifier.of_run(source)
        return cls(net, PastRun.read(folder.path, data_dir=data_dir).dataset(), num_images=num_images)

    def answer(self, pixels: Pixels) -> Answer:
        """What the run says of (32, 32, 3) uint8 pixels."""
        inputs = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2) / 255
        probabilities = self._net.probabilities(torch.from_numpy(pixels)[None])[0]
        heat = heat_maps(self._net, inputs, probabilities.argmax()[None])
        large_heat = F.interpolate(heat[:, None], scale_factor=ENLARGED, mode="bilinear")[0, 0].numpy()
        return Answer(
            dict(zip(self._net.class_names, probabilities.tolist(), strict=True)),
            enlarged(pixels), overlay(enlarged(pixels), large_heat), self._nearest(features(self._net, inputs)[0]),
        )  # fmt: skip

    def examples(self) -> Captioned:
        """Test images, spread evenly, with their class."""
        test = self.dataset.test
        rows = np.linspace(0, len(test) - 1, min(NUM_EXAMPLES, len(test))).round().astype(int)
        return [(test.images[row], self.dataset.class_names[test.labels[row]]) for row in rows]

    def _nearest(self, query: torch.Tensor) -> Captioned:
        train = self.dataset.train
        index, cosines = self._training_images.to(query, count=NUM_NEAREST)
        names = [self.dataset.class_names[label] for label in train.labels[index]]
        return [(enlarged(image), f"{cosine:.2f} {name} #{number}") for image, name, number, cosine
                in zip(train.images[index], names, index, cosines, strict=True)]  # fmt: skip


def enlarged(pixels: Pixels) -> Pixels:
    """(H, W, 3) with each pixel as a square."""
    return pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def page(guide: Guide, *, title: str) -> "gradio.Blocks":
    """The page: an image dropped, or one of the test set chosen; the answer beside it."""
    import gradio

    examples = guide.examples()

    def show(pixels: Pixels) -> list[Any]:
        answer = guide.answer(pixels)
        return [answer.probabilities, answer.seen, answer.heat, answer.nearest]

    def of_file(path: str) -> list[Any]:
        try:
            return [None, *show(read_image(Path(path)))]  # nothing is left in the place for files: it takes the next
        except InputError as error:
            gradio.Warning(str(error).replace(path, Path(path).name))
            return [None, *[gradio.skip()] * 4]

    def of_example(chosen: gradio.SelectData) -> list[Any]:
        return show(examples[chosen.index][0])

    plain: dict[str, Any] = {"format": "png", "buttons": [], "show_label": False, "height": "auto"}
    blocks = gradio.Blocks(title=title, analytics_enabled=False)
    with blocks:
        gradio.Markdown(f"## {title}\nNothing leaves this machine. Images are cropped to a square of 32 pixels a side.")
        with gradio.Row():
            with gradio.Column():
                dropped = gradio.File(label="Drop an image here, or click", file_types=["image"], height=140)
                gradio.Markdown("or choose one of the test set")
                tiles = [(enlarged(pixels), name) for pixels, name in examples]
                chosen = gradio.Gallery(tiles, allow_preview=False, **plain)
            with gradio.Column():
                label = gradio.Label(label="Probabilities", num_top_classes=5)
                gradio.Markdown("What the net saw, and what of it spoke for the class (Grad-CAM)")
                with gradio.Row():
                    seen = gradio.Image(interactive=False, min_width=120, **plain)
                    heat = gradio.Image(interactive=False, min_width=120, **plain)
        gradio.Markdown("The training images nearest to it for the net: cosine, class and index")
        nearest = gradio.Gallery(allow_preview=False, **plain)
        answers = [label, seen, heat, nearest]
        dropped.upload(of_file, dropped, [dropped, *answers], show_progress="hidden")
        chosen.select(of_example, None, answers, show_progress="hidden")
    return blocks


def demo(source: Path, *, num_images: int, data_dir: Path | None, port: int | None) -> None:
    """Serves the page on this machine alone until Ctrl-C.

    Raises `SettingsError` without Gradio or with a port that is taken, `InputError` for no run or no data.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # before the import
    try:
        import gradio
    except ModuleNotFoundError:
        raise SettingsError("demo: Gradio is not installed; pip install 'cifar10-accel[demo]'") from None
    name = locate_checkpoint(source)[0].name()
    blocks = page(Guide.of_run(source, num_images=num_images, data_dir=data_dir), title=f"{name}: what is this?")
    try:
        _, address, _ = blocks.launch(
            server_name="127.0.0.1", server_port=port, share=False, prevent_thread_lock=True, quiet=True, css=CSS,
            theme=gradio.themes.Default(**FONTS), footer_links=[], ssr_mode=False,
        )  # fmt: skip
    except OSError:
        raise SettingsError(f"port: {port} is taken; give another --port, or none for a free one") from None
    print(f"{name} answers at {address} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        blocks.close()
