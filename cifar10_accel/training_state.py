"""The state that updates change: built once, captured into checkpoints, restored from them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cifar10_accel.checkpoint import State, load_into
from cifar10_accel.data.batched import normalize
from cifar10_accel.data.cifar10 import Dataset, Split
from cifar10_accel.models import build, fit_whitening
from cifar10_accel.optim import make_average, make_optimizer
from cifar10_accel.randomness import seed_for
from cifar10_accel.recorder import Recorder
from cifar10_accel.settings import OptimSettings, Settings
from cifar10_accel.stopwatch import Stopwatch

WHITENING_IMAGES = 2000  # two million patches


@dataclass
class TrainingState:
    """The parts that an update reads and changes. `step` counts updates done."""

    accelerator: Accelerator
    net: nn.Module  # as built: its names are those in checkpoints
    model: nn.Module  # as prepared by Accelerate: what a training forward goes through
    average: AveragedModel | None
    optimizer: Optimizer
    step: int
    since_line: Tensor  # (3,) on the device, this rank: loss sum, right answers, images since the last metrics line
    since_epoch: list[float]  # the same over all ranks, from the start of the epoch to the last metrics line
    watch: Stopwatch  # seconds of training
    recorder: Recorder | None = None  # of what the net says of each training image

    @property
    def evaluated(self) -> nn.Module:
        """The net whose accuracy counts: the averaged one if weights are averaged."""
        return self.net if self.average is None else self.average.module

    def seed_update(self, seed: int) -> None:
        """Makes whatever a layer draws in the next update a function of (seed, step, rank)."""
        key = seed_for(seed, "update", self.step, self.accelerator.process_index) >> 1
        # Not torch.manual_seed: where there is no GPU it notes for each kind of one who has called, once an update.
        torch.default_generator.manual_seed(key)
        if self.accelerator.device.type != "cpu":
            torch.get_device_module(self.accelerator.device).manual_seed(key)

    def capture(self) -> State:
        """A copy on the CPU that `restore` continues from. All ranks must call this; rank 0's is the one to save."""
        self.since_line = self.accelerator.reduce(self.since_line)
        if not self.accelerator.is_main_process:
            self.since_line.zero_()
        scaler = self.accelerator.scaler
        return State(
            step=self.step,
            model=self.net.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            training={
                "optimizer": self.optimizer.state_dict(),
                "loss_scale": None if scaler is None else scaler.state_dict(),
                "since_line": self.since_line,
                "since_epoch": self.since_epoch,
                "seconds": self.watch.seconds(),
                "processes": self.accelerator.num_processes,
                "recorded": None if self.recorder is None else self.recorder.capture(),
            },
        )

    def restore(self, state: State, *, source: Path) -> None:
        """Continues from a captured state; `InputError` if it belongs to another net. Every rank calls this."""
        load_into(self.net, state.model, source=source)
        if self.average is not None and state.average is not None:
            load_into(self.average, state.average, source=source)
        # Options of groups are for the settings to say; whether kernels are fused, for the device of today.
        options = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state.training["optimizer"] | {"param_groups": options})
        if self.accelerator.scaler is not None and state.training["loss_scale"] is not None:
            self.accelerator.scaler.load_state_dict(state.training["loss_scale"])
        self.step = state.step
        if self.accelerator.is_main_process:
            self.since_line.copy_(state.training["since_line"])
        before, now = state.training["processes"], self.accelerator.num_processes
        if before != now:
            self.accelerator.print(
                f"saved by {before} process(es), continued by {now}: the same images and LR, but not the same bits"
            )
        self.since_epoch = list(state.training["since_epoch"])
        self.watch = Stopwatch(state.training["seconds"])


def build_net(settings: Settings, accelerator: Accelerator, *, num_classes: int) -> nn.Module:
    """The net on the device, in the memory format of the settings; its weights are a function of the seed."""
    torch.manual_seed(seed_for(settings.seed, "weights") >> 1)
    net = build(settings, num_classes=num_classes).to(accelerator.device)
    return net.to(memory_format=torch.channels_last) if settings.channels_last else net


def build_state(settings: Settings, accelerator: Accelerator, dataset: Dataset) -> TrainingState:
    """The state before the first update, the same on every rank."""
    net = build_net(settings, accelerator, num_classes=len(dataset.class_names))
    if settings.whitening:
        fit_whitening(net, _some_images(dataset.train, accelerator.device))
    average = make_average(net, settings.ema_decay)
    if settings.compile:
        net.compile()
    model, optimizer = prepare(accelerator, net, settings)
    return TrainingState(
        accelerator=accelerator, net=net, model=model, average=average, optimizer=optimizer, step=0,
        since_line=torch.zeros(3, device=accelerator.device), since_epoch=[0.0, 0.0, 0.0], watch=Stopwatch(0.0),
    )  # fmt: skip


def prepare(accelerator: Accelerator, net: nn.Module, settings: OptimSettings) -> tuple[nn.Module, Optimizer]:
    """The net and its optimizer as Accelerate prepares them. All ranks must call this.

    The wrapper of the optimizer stays only where it does something, for the loss scale of fp16: without one it
    looks through the installed packages, twice an update, and then calls the optimizer.
    """
    optimizer = make_optimizer(net, settings, fused=accelerator.device.type == "cuda")
    model, prepared = accelerator.prepare(net, optimizer)
    plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    unneeded = accelerator.scaler is None and accelerator.distributed_type in plain
    return model, prepared.optimizer if unneeded else prepared


def _some_images(split: Split, device: torch.device) -> Tensor:
    """Normalised images from all over the split, (WHITENING_IMAGES or a few more, 3, 32, 32)."""
    chosen = torch.from_numpy(split.images[:: max(1, len(split) // WHITENING_IMAGES)]).to(device)
    return normalize(chosen.permute(0, 3, 1, 2), dtype=torch.float32)
