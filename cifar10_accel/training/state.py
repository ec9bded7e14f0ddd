"""The state that steps change: built once, saved in checkpoints, restored from them."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cifar10_accel.components import describe_error, is_import_path, user_code
from cifar10_accel.data.augment.batched import normalize
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import SettingsError
from cifar10_accel.models.fine_tuning import freeze, load_fitting, read_weights
from cifar10_accel.models.imported import output_for_blank_images
from cifar10_accel.models.narrow_image_conv import correct_narrow_images
from cifar10_accel.models.registry import build_model, fit_whitening
from cifar10_accel.models.small_image_conv import speed_up_small_images
from cifar10_accel.randomness import seed_for
from cifar10_accel.runs.checkpoint import CheckpointData, load_into, require_readable
from cifar10_accel.settings import Settings
from cifar10_accel.training.callbacks import Callbacks
from cifar10_accel.training.compilation import require_compiler
from cifar10_accel.training.cuda_graphs import CudaGraphs, make_cuda_graphs
from cifar10_accel.training.dynamics_recorder import DynamicsRecorder
from cifar10_accel.training.optimization.loss import Loss, make_loss
from cifar10_accel.training.optimization.optimizer import make_average, prepare
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.stopwatch import Stopwatch

WHITENING_IMAGES = 2000  # of at most 32 pixels a side: two million patches

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """The parts that a step reads and changes."""

    accelerator: Accelerator
    settings: Settings
    model: nn.Module  # as built: its parameter names are those in checkpoints
    wrapped_model: nn.Module  # as prepared by Accelerate (DDP, autocast): training forward passes go through it
    average: AveragedModel | None  # the averaged weights, with `ema_decay`
    optimizer: Optimizer
    loss: Loss
    cuda_graphs: CudaGraphs | None = None  # of the steps, where they can be recorded
    callbacks: Callbacks | None = None
    recorder: DynamicsRecorder | None = None  # of the loss and prediction of each training image
    step: int = 0  # steps done
    has_saved_optimizer: bool = False  # in this process
    # Loss sum, correct predictions, images: of this rank since the last metrics line, on the device; and of all ranks
    # from the start of the epoch to the last metrics line.
    metrics_since_log: Tensor = field(default_factory=lambda: torch.zeros(3))
    epoch_metrics: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch(0.0))

    def __post_init__(self) -> None:
        self.metrics_since_log = self.metrics_since_log.to(self.accelerator.device)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model whose accuracy counts: the averaged one if weights are averaged."""
        return self.model if self.average is None else self.average.module

    def capture(self) -> CheckpointData:
        """Copy everything that `restore` needs. All ranks must call this; rank 0's result is the one to save."""
        self.metrics_since_log.copy_(self.accelerator.reduce(self.metrics_since_log))
        if not self.accelerator.is_main_process:
            self.metrics_since_log.zero_()
        scaler, optimizer = self.accelerator.scaler, self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            if isinstance(group["lr"], Tensor):  # where steps are CUDA graphs
                group["lr"] = group["lr"].item()
        if is_import_path(self.settings.optimizer) and not self.has_saved_optimizer:
            require_readable(optimizer, f"optimizer: the state_dict of {self.settings.optimizer}")
        self.has_saved_optimizer = True
        return CheckpointData(
            step=self.step,
            model=self.model.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            training={
                "optimizer": optimizer,
                "loss_scale": None if scaler is None else scaler.state_dict(),
                "metrics_since_log": self.metrics_since_log,
                "epoch_metrics": self.epoch_metrics,
                "seconds": self.stopwatch.seconds(),
                "seconds_since_line": self.stopwatch.since_lap(),  # of metrics.jsonl
                "processes": self.accelerator.num_processes,
                "dynamics": None if self.recorder is None else self.recorder.capture(),
                "callbacks": {} if self.callbacks is None else self.callbacks.state_dict(),
                "stop_reason": "" if self.callbacks is None else self.callbacks.stop_reason,
            },
        )

    def restore(self, saved: CheckpointData, *, source: Path) -> None:
        """Continue from a checkpoint. All ranks must call this.

        Raises:
            InputError: The checkpoint, which was read from `source`, belongs to another model.
        """
        load_into(self.model, saved.model, source=source)
        if self.average is not None and saved.average is not None:
            load_into(self.average, saved.average, source=source)
        optimizer = saved.training["optimizer"]
        if not is_import_path(self.settings.optimizer):
            # Hyperparameters of the groups come from the settings; whether kernels are fused, from today's device.
            optimizer = optimizer | {"param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(optimizer)
        if self.accelerator.scaler is not None and saved.training["loss_scale"] is not None:
            self.accelerator.scaler.load_state_dict(saved.training["loss_scale"])
        self.step = saved.step
        if self.accelerator.is_main_process:
            self.metrics_since_log.copy_(saved.training["metrics_since_log"])
        before, now = saved.training["processes"], self.accelerator.num_processes
        if before != now:
            logger.info(
                f"saved by {before} process(es), continued by {now}: the same images and LR, but not the same bits"
            )
        self.epoch_metrics = list(saved.training["epoch_metrics"])
        if self.callbacks is not None:
            self.callbacks.load_state_dict(saved.training.get("callbacks", {}))
            self.callbacks.stop_reason = saved.training.get("stop_reason", "")
        since_line = saved.training.get("seconds_since_line", 0.0)
        self.stopwatch = Stopwatch(saved.training["seconds"], since_lap=since_line)


def build_state(setup: RunSetup, *, is_resumed: bool = False) -> TrainingState:
    """Build the state before the first step, the same on every rank. All ranks must call this.

    Args:
        setup: Of the run.
        is_resumed: A checkpoint follows: the weights to start from, `init_from` and `pretrained`, need not exist any
            more.

    Raises:
        SettingsError: The settings do not fit the model.
        InputError: The model or the weights to start from cannot be had.
    """
    accelerator, settings, dataset = setup.accelerator, setup.settings, setup.dataset
    if settings.compile:
        require_compiler(accelerator.device)
    pretrained = settings.pretrained and not is_resumed
    model = build_seeded_model(settings, accelerator, dataset, pretrained=pretrained)
    if settings.low_res_epochs:
        _require_small_images(model, settings, dataset.image_format)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        speed_up_small_images(model)
        correct_narrow_images(model)
    if settings.whitening:
        fit_whitening(model, some_training_images(dataset, accelerator.device))
    if settings.init_from is not None and not is_resumed:
        load_fitting(model, read_weights(settings.init_from), source=settings.init_from)
    if settings.freeze:
        freeze(model, settings.freeze)
    model.train()  # a model of one's own may come in evaluation mode
    with user_code(f"copying {settings.model} for ema_decay", setting="model"):
        average = make_average(model, settings.ema_decay)
    loss = make_loss(settings, dataset, device=accelerator.device)
    if settings.compile:
        # The forward inside Accelerate's wrapper, which is new for every model: compiled with it, each model of a
        # process would be compiled anew. Each shape gets a graph of its own: one for any shape is slower.
        # A whole step becomes a CUDA graph, not the model's part of it.
        mode = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}[settings.compile_mode]
        model.forward = torch.compile(model.forward, mode=mode, dynamic=False)
        loss = loss if is_import_path(settings.loss) else torch.compile(loss, dynamic=False)
    wrapped_model, optimizer = prepare(accelerator, model, settings)
    cuda_graphs = make_cuda_graphs(settings, accelerator, optimizer)
    return TrainingState(accelerator, settings, model, wrapped_model, average, optimizer, loss, cuda_graphs)


def build_seeded_model(
    settings: Settings, accelerator: Accelerator, dataset: Dataset, *, pretrained: bool = False
) -> nn.Module:
    """Build the model on the device, in the memory format of the settings; its weights are a function of the seed.

    With `pretrained` they are the published ones of a model that is not built in.
    """
    torch.manual_seed(seed_for(settings.seed, "weights") >> 1)
    model = build_model(
        settings,
        num_classes=len(dataset.class_names),
        image_format=dataset.image_format,
        pretrained=pretrained,
    ).to(accelerator.device)
    return model.to(memory_format=torch.channels_last) if settings.channels_last else model


def _require_small_images(model: nn.Module, settings: Settings, image_format: ImageFormat) -> None:
    """Raise `SettingsError` for a model that does not take the small images of the first epochs."""
    size = settings.low_res_size
    try:
        output_for_blank_images(model, channels=image_format.channels, size=size)
    except Exception as error:  # a model may raise anything
        raise SettingsError(
            f"low_res_size: {settings.model} does not take images of {size} pixels a side: {describe_error(error)}; "
            "give --low-res-fraction 0, or another --low-res-size"
        ) from error


def some_training_images(dataset: Dataset, device: torch.device) -> Tensor:
    """Normalised images spread over the training set, (N, C, H, W).

    N is about WHITENING_IMAGES, and less for images above 32 pixels a side, which have more patches each.
    """
    split, wanted = dataset.train, dataset.image_format.num_in_equal_memory(WHITENING_IMAGES)
    chosen = torch.from_numpy(split.images[:: max(1, len(split) // wanted)]).to(device)
    return normalize(chosen.permute(0, 3, 1, 2), torch.float32, dataset.image_format)
