"""Settings of the optimizer step and the learning rate schedule."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from cifar10_accel.settings.section import Duration, Positive, Section, built_in


class OptimSettings(Section):
    """Optimizer step."""

    batch_size: int = Field(512, ge=1, description="images per step, over all processes and accumulation steps")
    grad_accum_steps: int = Field(
        1, ge=1, le=1024, description="micro-batches that each process splits its batch into, to save memory"
    )
    optimizer: str = Field(
        "sgd",
        json_schema_extra=built_in("sgd", "muon", "adamw"),
        description="muon: orthogonalised updates of convolutions, sgd for the rest; or the import path of a class or "
        "function of (parameter groups, lr), such as torch.optim:RMSprop",
    )
    optimizer_args: Annotated[dict[str, Any], NoDecode] = Field(
        {}, description='more arguments of an optimizer that is not built in, as JSON: {"alpha": 0.9}'
    )
    loss: str = Field(
        "cross_entropy",
        json_schema_extra=built_in("cross_entropy"),
        description="cross_entropy, or the import path of a function of (logits, labels), or of a class of such",
    )
    class_weights: Annotated[tuple[Positive, ...] | Literal["balanced"] | None, NoDecode] = Field(
        None,
        description="weight of each class in the cross-entropy, comma-separated; balanced: in inverse proportion to "
        "its number of training images. Only their ratios count",
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


class ScheduleSettings(Section):
    """Length of the training and learning rate."""

    epochs: int = Field(24, ge=1, le=100_000, description="passes over the training set")
    time_budget: Duration | None = Field(
        None,
        ge=1,
        le=30 * 24 * 3600,
        description="limit of the training time, such as 90s, 10m or 1h: a few timed steps choose the epochs, and the "
        "recipe for `auto`; given epochs are kept",
    )
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many steps; the LR curve stays that of all epochs"
    )
    schedule: str = Field(
        "one_cycle",
        json_schema_extra=built_in("one_cycle", "cosine", "constant", "warmup_stable_decay"),
        description="LR curve, each with a warm-up to peak_epoch; or the import path of a function of "
        "(step, total_steps) that returns the LR as a multiple of max_lr",
    )
    max_lr: float = Field(0.4, gt=0, le=1000, description="LR at the peak of the schedule")
    peak_epoch: float = Field(5.0, ge=0, description="epoch of the LR peak; --epochs alone moves it in proportion")
    decay_fraction: float = Field(
        0.2, gt=0, le=1, description="warmup_stable_decay: share of the run, at its end, in which the LR falls"
    )
    div_factor: float = Field(25.0, ge=1, le=1e9, description="the first LR is max_lr / div_factor")
    final_div_factor: float = Field(
        1e4, ge=1, le=1e12, description="the last LR is the first LR / final_div_factor; 1: they are equal"
    )
    anneal: Literal["linear", "cos"] = Field("linear", description="shape of the ramps")
    low_res_fraction: float = Field(
        0.0, ge=0, le=1, description="share of the epochs, from the first on, with images scaled down to save time"
    )
    low_res_size: int = Field(24, ge=8, le=255, description="side of the images in those epochs, in pixels")

    @property
    def low_res_epochs(self) -> int:
        """The number of epochs that see small images: whole ones."""
        return round(self.low_res_fraction * self.epochs)
