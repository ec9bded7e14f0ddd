"""Code of a repository on the Hugging Face Hub, with which transformers loads a model of cifar10-accel.

    AutoModelForImageClassification.from_pretrained(FOLDER_OR_REPOSITORY, trust_remote_code=True)

The layers come from the package cifar10-accel, which must be installed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from cifar10_accel.models.classifier import Classifier


class Cifar10AccelConfig(PretrainedConfig):
    """Arguments of a Classifier, beside the fields that every configuration has."""

    model_type = "cifar10-accel"

    def __init__(
        self,
        model_settings: dict[str, Any] | None = None,
        class_names: tuple[str, ...] = (),
        images: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.model_settings = model_settings or {}
        self.class_names = list(class_names)
        self.images = images or {}
        super().__init__(**fields)


class Cifar10AccelForImageClassification(PreTrainedModel):
    """Images (N, C, H, W), floats in 0..1, to logits; the normalisation is inside."""

    config_class = Cifar10AccelConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Cifar10AccelConfig) -> None:
        super().__init__(config)
        # transformers builds models without values, but some models compute with values while they are built.
        with torch.device("cpu"):
            classifier = Classifier(
                model_settings=config.model_settings, class_names=config.class_names, images=config.images
            )
        self.model = classifier.model
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Return the logits (N, num_classes) and, with labels (N,), the mean cross-entropy."""
        images = self.config.images
        # Not buffers: transformers builds a model without values, and these are not among the weights of the file.
        mean, std = (
            torch.tensor(images[name], device=pixel_values.device, dtype=pixel_values.dtype).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        logits = self.model((pixel_values - mean) / std)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
