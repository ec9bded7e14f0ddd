"""Every hyperparameter of a run: name, range, default and one sentence. The only source of defaults.

Names are flat, so a flag, a sweep parameter, a W&B config key and a YAML key are the same word; in code they are
grouped in section classes, so that a function can take just the section it needs. A value comes from (first wins): the
keyword or flag, the environment (`CIFAR10_ACCEL_<NAME>`), the recipe, the default here. Anything unknown, out of
range, nan or inf is a `SettingsError`.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from cifar10_accel.errors import SettingsError
from cifar10_accel.formatting import setting_error_line
from cifar10_accel.settings_sources import ENV_PREFIX, RecipeSource, refuse_unknown_environment

Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class DataSettings(_Section):
    """Data set and augmentation."""

    dataset: Literal["auto", "cifar10", "synthetic", "folder"] = Field(
        "auto",
        description="cifar10; synthetic (drawn, no download); folder (train/ and test/ of class folders); "
        "auto: cifar10 if it is there or can be had, else synthetic with a warning",
    )
    data_dir: Path = Field(Path("data"), description="where the data set is, or is downloaded to")
    synthetic_size: int = Field(
        20_000, ge=100, le=1_000_000, description="training images of the synthetic set (a fifth more for testing)"
    )
    val_size: int = Field(0, ge=0, description="images held out of the training set, stratified, for val/accuracy")
    augment: Annotated[tuple[Literal["crop", "flip", "cutout"], ...], NoDecode] = Field(
        ("crop", "flip", "cutout"), description="augmentations of the training images, comma-separated; none for none"
    )
    crop_padding: int = Field(4, ge=1, le=16, description="pixels padded on each side before the random crop")
    pad_mode: Literal["reflect", "constant"] = Field(
        "reflect", description="content of the padding: the mirrored image or the mean colour"
    )
    flip_mode: Literal["random", "alternating"] = Field(
        "random",
        description="random: drawn for each image and epoch; alternating: drawn in the first epoch, "
        "then alternately flipped and not",
    )
    cutout_size: int = Field(
        8, ge=1, le=32, description="side of the square that cutout fills with the mean, in pixels"
    )
    mixup_alpha: Positive | None = Field(None, description="MixUp with weights from Beta(alpha, alpha); none: off")
    cutmix_alpha: Positive | None = Field(
        None,
        description="CutMix with areas from Beta(alpha, alpha); none: off; with mixup_alpha: one of the two, drawn "
        "for each batch",
    )
    augment_backend: Literal["auto", "batched", "albumentations"] = Field(
        "auto",
        description="batched: whole batches on the device; albumentations: image by image in loader workers; "
        "auto: batched if every transform can be lowered. Same pixels either way",
    )
    num_workers: int = Field(
        0, ge=0, le=256, description="loader processes per rank for the albumentations backend (0: in the main process)"
    )


class ModelSettings(_Section):
    """Model."""

    model: Literal["resnet9", "resnet18", "depthwise_dilated", "airbench94", "airbench96"] = Field(
        "resnet9", description="architecture; `cifar10-accel models` describes them"
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


class OptimSettings(_Section):
    """Optimizer step."""

    batch_size: int = Field(512, ge=1, description="images per step, over all processes and accumulation steps")
    grad_accum_steps: int = Field(
        1, ge=1, le=1024, description="micro-batches that each process splits its batch into, to save memory"
    )
    optimizer: Literal["sgd", "muon", "adamw"] = Field(
        "sgd", description="muon: orthogonalised updates of convolutions, sgd for the rest"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; first beta of adamw")
    nesterov: bool = Field(True, description="Nesterov momentum (sgd, muon)")
    conv_lr_factor: Positive = Field(
        0.1, description="muon: LR of convolutions, relative to their norm, as a multiple of max_lr"
    )
    conv_momentum: float = Field(
        0.6, ge=0, lt=1, description="muon: momentum of convolutions (momentum is that of the rest)"
    )
    bias_lr_factor: Positive = Field(
        1.0, description="LR of norm parameters and biases as a multiple of max_lr (their decay is divided by it)"
    )
    weight_decay: float = Field(5e-4, ge=0, le=1, description="L2 penalty of sgd; decoupled decay of adamw")
    decay_norm_and_bias: bool = Field(True, description="apply weight decay to norm parameters and biases too")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the label's probability that is spread evenly over the classes"
    )
    grad_clip: Positive | None = Field(
        None, description="largest allowed norm of the whole gradient; none: no clipping"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of the averaged weights, which are then evaluated; none: no averaging",
    )


class ScheduleSettings(_Section):
    """Length of the training and learning rate."""

    epochs: int = Field(24, ge=1, le=100_000, description="passes over the training set")
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many steps; the LR curve stays that of all epochs"
    )
    max_lr: float = Field(0.4, gt=0, le=1000, description="LR at the peak of the one-cycle")
    peak_epoch: float = Field(5.0, ge=0, description="epoch of the LR peak; --epochs alone moves it in proportion")
    div_factor: float = Field(25.0, ge=1, le=1e9, description="the first LR is max_lr / div_factor")
    final_div_factor: float = Field(
        1e4, ge=1, le=1e12, description="the last LR is the first LR / final_div_factor; 1: no annihilation"
    )
    anneal: Literal["linear", "cos"] = Field("linear", description="shape of the two ramps")
    low_res_fraction: float = Field(
        0.0, ge=0, le=1, description="share of the epochs, from the first on, with images scaled down to save time"
    )
    low_res_size: int = Field(24, ge=16, le=31, description="side of the images in those epochs, in pixels")

    @property
    def low_res_epochs(self) -> int:
        """The number of epochs that see small images: whole ones."""
        return round(self.low_res_fraction * self.epochs)


class RunSettings(_Section):
    """Execution, evaluation, checkpoints and the run folder."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order, augmentation and hold-out")
    precision: Literal["no", "fp16", "bf16"] | None = Field(
        None, description="mixed precision; none: as `accelerate launch` says"
    )
    channels_last: bool = Field(True, description="NHWC memory format (faster convolutions)")
    compile: bool = Field(False, description="torch.compile the model (a minute at the start, faster after)")
    deterministic: bool = Field(
        False, description="use only deterministic kernels; slower on a GPU (a CPU always uses them)"
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads per process; none: this machine's cores shared by its processes"
    )
    collective_timeout: float = Field(
        600, ge=1, description="seconds that ranks wait for each other before the run is ended"
    )
    tta: Literal["none", "flip", "multicrop"] = Field(
        "none", description="test-time augmentation, reported beside the plain number"
    )
    eval_batch_size: int = Field(1000, ge=1, description="images per evaluation batch and process")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations (the last epoch always is)")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: Positive = Field(1.0, description="epochs between checkpoints; 0.25: four an epoch")
    keep_checkpoints: int = Field(
        2, ge=2, description="newest checkpoints to keep (at least two, in case one is damaged)"
    )
    run_dir: Path | None = Field(None, description="run folder; none: runs/<run_name>")
    run_name: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        pattern=r"^[^/\\]+$",
        description="none: recipe, data set and a hash of the settings, so that the same command resumes",
    )


class TrackingSettings(_Section):
    """Trackers that get a copy of metrics.jsonl; none of them can stop a training."""

    tracker: Literal["none", "wandb", "trackio", "tensorboard"] = Field(
        "wandb", description="where metrics go besides the run folder"
    )
    wandb_project: str = Field("cifar10-accel", min_length=1, description="W&B (or Trackio) project")
    wandb_entity: str | None = Field(None, description="W&B team or user; none: your default")
    wandb_mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="auto: online where you are logged in, else offline"
    )


class Settings(
    TrackingSettings, RunSettings, ScheduleSettings, OptimSettings, ModelSettings, DataSettings, BaseSettings
):
    """All settings of a run, validated; immutable. `Settings(max_lr=0.2)` is all Python code needs."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    recipe: str = Field(
        "auto",
        description="name of a recipe, or a YAML file of settings; auto: resnet9, or cpu without an accelerator",
    )

    # Two runs that differ only in these end with the same weights.
    DOES_NOT_AFFECT_WEIGHTS: ClassVar[frozenset[str]] = frozenset(
        {
            "recipe",
            "data_dir",
            "augment_backend",
            "num_workers",
            "max_steps",
            "eval_batch_size",
            "eval_every",
            "tta",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "num_threads",
            "collective_timeout",
            "run_dir",
            "run_name",
        }
        | set(TrackingSettings.model_fields)
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(
                "\n".join(setting_error_line(details, type(self).model_fields) for details in error.errors())
            ) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        refuse_unknown_environment(settings_cls.model_fields)
        return init_settings, env_settings, RecipeSource(settings_cls)

    def resolve_recipe(self, *, on_cpu: bool) -> Self:
        """Return the settings with the recipe that `auto` stands for; unchanged if they name a recipe.

        Keywords, flags and environment variables are kept and win over the recipe's values.
        """
        if self.recipe != "auto":
            return self
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**(given | {"recipe": "cpu" if on_cpu else "resnet9"}))

    def weight_affecting(self) -> dict[str, Any]:
        """Return the settings that decide the final weights, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.DOES_NOT_AFFECT_WEIGHTS))

    def fingerprint(self) -> str:
        """Return six hex digits that identify the settings that decide the final weights."""
        return hashlib.sha256(yaml.safe_dump(self.weight_affecting()).encode()).hexdigest()[:6]

    def to_yaml(self) -> str:
        """Return every setting as YAML, grouped as here; `files.read_yaml` gives the same settings back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @field_validator("*", mode="before")
    @classmethod
    def _words_to_values(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[cast(str, info.field_name)].annotation
        if info.field_name == "augment" and isinstance(value, str):
            return () if value.lower() in ("none", "") else [word.strip() for word in value.split(",")]
        if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in get_args(annotation):
            return None
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError("expected a value, not true or false")
        return value

    @model_validator(mode="after")
    def _agree_with_each_other(self) -> Self:
        peak_is_open = self.recipe == "auto" and "peak_epoch" not in self.model_fields_set  # until it is resolved
        if self.peak_epoch >= self.epochs and not peak_is_open:
            raise ValueError(
                f"peak_epoch: {self.peak_epoch:g} is not before the end of {self.epochs} epochs; "
                f"give --peak-epoch a value below {self.epochs}"
            )
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size: {self.batch_size} cannot be split into {self.grad_accum_steps} equal micro-batches; "
                "give a multiple of grad_accum_steps"
            )
        return self
