"""A trained model for use outside training: pixels in, logits out, with the normalisation and class names inside."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import InputError
from cifar10_accel.models.registry import build_model
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.run_folder import locate_checkpoint
from cifar10_accel.settings import ModelSettings


class Classifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="cifar10-accel",
    license="mit",
    pipeline_tag="image-classification",
    tags=["image-classification"],
):
    """Images (N, C, H, W), floats in 0..1, to logits (N, num_classes).

    `from_pretrained` and `save_pretrained` read and write a folder or a repository of the Hugging Face Hub.

    Args:
        model_settings: Values of the settings in section ModelSettings.
        class_names: Names of the classes, in the order of the logits.
        images: `ImageFormat.to_json` of the images; CIFAR-10's if empty.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, model_settings: dict[str, Any], class_names: list[str], images: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model_settings, self.class_names = model_settings, tuple(class_names)
        self.image_format = ImageFormat.from_json(images or {})
        self.model = build_model(
            ModelSettings(**model_settings), num_classes=len(class_names), image_format=self.image_format
        )
        self.register_buffer("mean", torch.tensor(self.image_format.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.image_format.std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_run(cls, source: Path) -> "Classifier":
        """Return the classifier of a run, on the CPU and in evaluation mode.

        Args:
            source: A run folder (its newest checkpoint is loaded) or a checkpoint in one. Averaged weights are used
                if the run has them.

        Raises:
            InputError: `source` is neither.
        """
        folder, path = locate_checkpoint(source)
        class_names = folder.read_json("environment.json").get("classes")
        if not class_names:
            raise InputError(f"{folder.path}: environment.json names no classes; start the training there once more")
        settings = folder.settings()
        model_settings = settings.model_dump(include=set(ModelSettings.model_fields) - settings.unused())
        images = folder.image_format().to_json()
        classifier = cls(model_settings=model_settings, class_names=list(class_names), images=images)
        checkpoint.load_into(classifier.model, checkpoint.load(path).evaluated, source=path)
        return classifier.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, C, H, W), floats in 0..1."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the probabilities (N, num_classes) of images (N, H, W, C), uint8."""
        return self.forward(pixels.permute(0, 3, 1, 2) / 255).softmax(dim=1)
