"""Settings of the model."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from cifar10_accel.settings.section import Positive, Section, built_in


class ModelSettings(Section):
    """Model."""

    model: str = Field(
        "resnet9",
        json_schema_extra=built_in("resnet9", "resnet18", "depthwise_dilated", "airbench94", "airbench96"),
        description="architecture; `cifar10-accel models` describes them; or timm:NAME, or the import path of a "
        "function or class that returns a model",
    )
    model_args: Annotated[dict[str, Any], NoDecode] = Field(
        {}, description='more arguments of a model that is not built in, as JSON: {"depth": 3}'
    )
    width: int = Field(64, ge=4, le=1024, description="channels of the first stage; the others are in proportion")
    activation: Literal["relu", "gelu", "celu", "silu"] = Field("relu", description="non-linearity after each norm")
    head_bias: bool = Field(False, description="add a bias to the last linear layer")
    logit_scale: Positive = Field(
        0.125, description="factor on the logits; below 1 allows a higher LR (give 1 for resnet18)"
    )
    whitening: bool = Field(
        False,
        description="start with a fixed convolution that whitens image patches, computed from the training images",
    )
    identity_init: bool = Field(False, description="initialise 3x3 convolutions to pass their inputs on")
    norm_scale: bool = Field(True, description="train the scale of norms; their bias always is trained")
    norm_gain: Positive = Field(
        1.0,
        description="initial scale of norms and of a whitening stem; above 1, smooth activations work further "
        "from zero, where they are less linear",
    )


class FineTuningSettings(Section):
    """Start from trained weights."""

    init_from: Path | None = Field(
        None,
        description="run folder, checkpoint or .safetensors file whose weights the training starts from, "
        "where they fit",
    )
    pretrained: bool = Field(
        False, description="let a timm model (or another with an argument `pretrained`) download its published weights"
    )
    freeze: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="patterns of parameter names that are not trained, comma-separated, such as stem.*"
    )
