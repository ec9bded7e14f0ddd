"""Settings of execution, evaluation, checkpoints, the run folder and trackers."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from cifar10_accel.settings.section import Positive, Section, built_in


class RunSettings(Section):
    """Execution, evaluation, checkpoints and the run folder."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order, augmentation and hold-out")
    precision: Literal["auto", "no", "fp16", "bf16"] = Field(
        "auto",
        description="mixed precision, no: float32; auto: as `accelerate launch --mixed_precision` says, else what the "
        "hardware computes fastest",
    )
    channels_last: bool = Field(True, description="NHWC memory format (faster convolutions)")
    compile: bool = Field(False, description="torch.compile the model (a minute at the start, faster after)")
    compile_mode: Literal["default", "max-autotune"] = Field(
        "default", description="max-autotune: torch.compile also tries variants of its kernels (minutes at the start)"
    )
    cuda_graph: bool = Field(
        True,
        description="launch each step as one CUDA graph: on one GPU, with a built-in model, loss and optimizer (sgd or "
        "muon), without MixUp and CutMix",
    )
    deterministic: bool = Field(
        False, description="use only deterministic kernels; slower on a GPU (a CPU always uses them)"
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads per process; none: this machine's cores shared by its processes"
    )
    collective_timeout: float = Field(
        600, ge=1, description="seconds that ranks wait for each other before the run is ended"
    )
    tta: Literal["none", "flip", "multicrop", "multicrop_uncertain"] = Field(
        "none",
        description="test-time augmentation, reported beside the plain number; multicrop_uncertain: only for the "
        "quarter of the images with the least certain prediction",
    )
    eval_batch_size: int = Field(
        1000, ge=1, description="images per evaluation batch and process; fewer if they are above 32 pixels a side"
    )
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
        description="none: recipe, data set and a hash of the settings, so that the same command resumes",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _read_former_default(cls, value: Any) -> Any:
        """Read none, which files of earlier versions have, as `auto`."""
        return "auto" if value is None or str(value).lower() in ("none", "null") else value

    @field_validator("run_name")
    @classmethod
    def _require_a_folder_of_its_own(cls, value: str | None) -> str | None:
        if value in (".", "..") or any(sign in "/\\" or sign < " " for sign in value or ""):
            raise ValueError("is no name of a new folder in runs/; give one, or a path as --run-dir")
        return value


class CallbackSettings(Section):
    """Callbacks: code that runs at steps and epochs."""

    callbacks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        json_schema_extra=built_in("early_stopping", "best_checkpoint"),
        description="built-in callbacks or import paths of callback classes, comma-separated",
    )
    callback_args: Annotated[dict[str, Any], NoDecode] = Field(
        {}, description='arguments of the callbacks that have them, as JSON: {"patience": 3}'
    )


class TrackingSettings(Section):
    """Trackers that get a copy of metrics.jsonl; none of them can stop a training."""

    tracker: str = Field(
        "wandb",
        json_schema_extra=built_in("none", "wandb", "trackio", "tensorboard"),
        description="where metrics go besides the run folder; or the import path of an Accelerate GeneralTracker",
    )
    wandb_project: str = Field("cifar10-accel", min_length=1, description="W&B (or Trackio) project")
    wandb_entity: str | None = Field(None, description="W&B team or user; none: your default")
    wandb_mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="auto: online where you are logged in, else offline"
    )
