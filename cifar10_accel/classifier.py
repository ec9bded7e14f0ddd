"""A trained net as others use it: pixels in, logits out, with the normalisation and the class names inside."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from cifar10_accel import checkpoint
from cifar10_accel.data.augment import MEAN, STD
from cifar10_accel.errors import InputError
from cifar10_accel.models import build
from cifar10_accel.run_folder import RunFolder, locate_checkpoint
from cifar10_accel.settings import ModelSettings


class Classifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="cifar10-accel",
    license="mit",
    pipeline_tag="image-classification",
    tags=["cifar-10", "image-classification"],
):
    """RGB images (N, 3, 32, 32), floats in 0..1, to logits (N, num_classes).

    `from_pretrained` and `save_pretrained` read and write a folder or a repository of the Hugging Face Hub.
    net: the settings of section ModelSettings; class_names: in the order of the logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, net: dict[str, Any], class_names: list[str]) -> None:
        super().__init__()
        self.config, self.class_names = net, tuple(class_names)
        self.net = build(ModelSettings(**net), num_classes=len(class_names))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """(N, num_classes), from (N, 32, 32, 3) uint8."""
        return self.forward(pixels.permute(0, 3, 1, 2) / 255).softmax(dim=1)


def of_run(source: Path) -> tuple[Classifier, RunFolder]:
    """The classifier of a run folder (its newest checkpoint) or of one checkpoint, on the CPU, for evaluation.

    Averaged weights are used if the run has them. Raises `InputError` for a folder that is neither.
    """
    run, path = locate_checkpoint(source)
    classes = run.read_json("environment.json").get("classes")
    if not classes:
        raise InputError(f"{run.path}: environment.json names no classes; start the training there once more")
    net = run.settings().model_dump(include=set(ModelSettings.model_fields))
    classifier = Classifier(net=net, class_names=list(classes))
    checkpoint.load_into(classifier.net, checkpoint.load(path).evaluated, source=path)
    return classifier.eval(), run
