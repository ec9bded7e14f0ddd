"""Training loops that `benchmarks.loop` compares, each as its users write it."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cifar10_accel.data.batch_plan import BatchPlan
from cifar10_accel.data.loader import Batch
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.tracking.progress import RunProgress
from cifar10_accel.tracking.tracker import Tracker
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.cuda_graphs import make_cuda_graphs
from cifar10_accel.training.dynamics_recorder import DynamicsRecorder
from cifar10_accel.training.metrics_logger import MetricsLogger
from cifar10_accel.training.optimization.lr_schedule import OneCycle
from cifar10_accel.training.optimization.optimizer import prepare
from cifar10_accel.training.preemption import PreemptionHandler
from cifar10_accel.training.state import TrainingState
from cifar10_accel.training.step import explain_non_finite, train_step

NUM_IMAGES = 50_000  # of an epoch, for the LR


@dataclass(frozen=True, kw_only=True)
class Task:
    """The training of every contestant: `warm_steps` steps, then `steps` that are measured, and one more."""

    model: nn.Module
    batches: list[Batch]
    settings: Settings
    schedule: OneCycle
    steps: int

    @property
    def warm_steps(self) -> int:
        """Steps before the measured ones, which choose kernels and fill caches."""
        return max(2, self.steps // 10)

    @property
    def all_steps(self) -> int:
        """Steps of a run."""
        return self.warm_steps + self.steps + 1

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The batches as pairs of images and labels."""
        return [(batch.images, batch.labels) for batch in self.batches]

    def sgd(self, model: nn.Module) -> torch.optim.SGD:
        """Return the optimizer of all but this project; its LR is set, or scaled by a scheduler, before every step."""
        settings = self.settings
        return torch.optim.SGD(
            model.parameters(),
            lr=1.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )


# Arguments of the Trainer of `transformers` that switch off everything besides training.
TRAINING_ALONE: dict[str, Any] = {
    "max_grad_norm": 0.0,
    "save_strategy": "no",
    "logging_strategy": "no",
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "disable_tqdm": True,
}

Contestant = Callable[[Task, nn.Module], float]  # trains the model; returns the seconds of the measured steps


class TimedBatches:
    """Batches of one run; `seconds` is the time between two requests for a batch that are `steps` steps apart.

    A loop that prefetches a batch does so at both requests, so it also takes `steps` steps in that time.
    """

    def __init__(self, task: Task, batches: list[Any]) -> None:
        self._task = task
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        task = self._task
        for step in range(task.all_steps):
            if step == task.warm_steps:
                start = self._now()
            elif step == task.all_steps - 1:
                self.seconds = self._now() - start
            yield self._batches[step % len(self._batches)]

    def _now(self) -> float:
        if self._task.batches[0].images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def bare_pytorch(task: Task, model: nn.Module) -> float:
    """A loop without any library. Returns the seconds of the measured steps, as every contestant does."""
    optimizer, loader = task.sgd(model), TimedBatches(task, task.pairs)
    for step, (images, labels) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = task.schedule.lr_at(step)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return loader.seconds


def this_project(task: Task, model: nn.Module) -> float:
    """The step of `train.py`, without the end of an epoch."""
    settings, loader = task.settings, TimedBatches(task, [[batch] for batch in task.batches])
    accelerator = make_accelerator(settings)
    wrapped_model, optimizer = prepare(accelerator, model, settings)
    state = TrainingState(accelerator, settings, model, wrapped_model, None, optimizer, F.cross_entropy)
    state.cuda_graphs = make_cuda_graphs(settings, accelerator, optimizer)
    state.recorder = DynamicsRecorder(accelerator, np.zeros(NUM_IMAGES, dtype=np.int64), num_classes=10)
    plan = BatchPlan.of(settings, accelerator, NUM_IMAGES)
    progress = RunProgress(is_main=False, start_step=0, stop_step=task.all_steps, num_epochs=settings.epochs)
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(accelerator, settings, run_dir=Path(folder), run_name="loop", config={}, resume_step=0)
        with (
            PreemptionHandler(accelerator) as preemption,
            MetricsLogger(tracker, progress, plan, settings) as metrics,
        ):
            state.stopwatch.start()
            for batches in loader:
                lr = task.schedule.lr_at(state.step)
                with explain_non_finite(state, batches, RunFolder(Path(folder)), lr=lr):
                    train_step(state, batches, lr=lr)
                if state.step % settings.log_every == 0:
                    metrics.log_step(state, lr=lr)
                if preemption.received(state.step):
                    raise KeyboardInterrupt
    return loader.seconds


def silence_lightning() -> None:
    """Show errors of `lightning` alone; its levels are set on import, so call this after it."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)


def lightning_trainer(task: Task, model: nn.Module) -> float:
    """`lightning.pytorch.Trainer`."""
    from lightning.pytorch import LightningModule, Trainer

    silence_lightning()

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> Any:
            optimizer = task.sgd(self.model)
            scheduler = {"scheduler": LambdaLR(optimizer, task.schedule.lr_at), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    loader = TimedBatches(task, task.pairs)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    Trainer(barebones=True, max_steps=task.all_steps, accelerator=device, devices=1).fit(Module(), loader)
    return loader.seconds


def transformers_trainer(task: Task, model: nn.Module) -> float:
    """`transformers.Trainer`."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class TimedTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            return F.cross_entropy(model(inputs["images"]), inputs["labels"])

    loader = TimedBatches(task, [{"images": images, "labels": labels} for images, labels in task.pairs])
    optimizer = task.sgd(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=task.all_steps,
            use_cpu=not torch.cuda.is_available(),
            **TRAINING_ALONE,
        )
        trainer = TimedTrainer(
            model=model, args=arguments, optimizers=(optimizer, LambdaLR(optimizer, task.schedule.lr_at))
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return loader.seconds
