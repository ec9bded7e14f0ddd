"""The training loops that `benchmarks.loop` compares, each as its users write it."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cifar10_accel.console import RunConsole
from cifar10_accel.data.batches import Batch, BatchPlan
from cifar10_accel.engine import train_step
from cifar10_accel.interrupt import StopSignal
from cifar10_accel.journal import Journal
from cifar10_accel.launch import make_accelerator
from cifar10_accel.schedule import OneCycle
from cifar10_accel.settings import Settings
from cifar10_accel.stopwatch import Stopwatch
from cifar10_accel.tracking import Tracker
from cifar10_accel.training_state import TrainingState, prepare

NUM_IMAGES = 50_000  # of an epoch, for the LR


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every contestant trains; a run is `warm_steps` updates, then `steps` that are measured, and one more."""

    net: nn.Module
    batches: list[Batch]
    settings: Settings
    schedule: OneCycle
    steps: int

    @property
    def warm_steps(self) -> int:
        """Updates before the measured ones, which choose kernels and fill caches."""
        return max(2, self.steps // 10)

    @property
    def all_steps(self) -> int:
        """Updates of a run."""
        return self.warm_steps + self.steps + 1

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The batches as pairs of images and labels."""
        return [(batch.images, batch.labels) for batch in self.batches]

    def sgd(self, net: nn.Module) -> torch.optim.SGD:
        """The optimizer of all but this project; its LR is set, or multiplied by a scheduler, before every update."""
        settings = self.settings
        return torch.optim.SGD(
            net.parameters(), lr=1.0, momentum=settings.momentum, nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )  # fmt: skip


Contestant = Callable[[Task, nn.Module], float]  # trains the net; seconds of the measured updates


class Feed:
    """The batches of one run, in turn; `seconds` is the time from one request for a batch to another, `steps` later.

    A loop that fetches a batch ahead does so at both ends: it too makes `steps` updates in that time.
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


def bare_pytorch(task: Task, net: nn.Module) -> float:
    """The loop that one writes without any library; its seconds, as for every contestant."""
    optimizer, feed = task.sgd(net), Feed(task, task.pairs)
    for step, (images, labels) in enumerate(feed):
        for group in optimizer.param_groups:
            group["lr"] = task.schedule.lr_at(step)
        loss = F.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return feed.seconds


def this_project(task: Task, net: nn.Module) -> float:
    """What `train.py` does in an update that ends no epoch."""
    settings, feed = task.settings, Feed(task, [[batch] for batch in task.batches])
    accelerator = make_accelerator(settings)
    model, optimizer = prepare(accelerator, net, settings)
    state = TrainingState(
        accelerator=accelerator, net=net, model=model, average=None, optimizer=optimizer, step=0,
        since_line=torch.zeros(3, device=accelerator.device), since_epoch=[0.0, 0.0, 0.0], watch=Stopwatch(0.0),
    )  # fmt: skip
    plan = BatchPlan.of(settings, accelerator, num_images=NUM_IMAGES)
    console = RunConsole(is_main=False, start_step=0, stop_step=task.all_steps, num_epochs=settings.epochs)
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(accelerator, settings, run_dir=Path(folder), run_name="loop", config={}, resume_step=0)
        with StopSignal(accelerator) as signal, Journal(tracker, console, plan, settings) as journal:
            state.watch.start()
            for batches in feed:
                lr = task.schedule.lr_at(state.step)
                state.seed_update(settings.seed)
                state.since_line += train_step(
                    accelerator, state.model, state.optimizer, batches, lr=lr, settings=settings, average=None
                )
                state.step += 1
                if state.step % settings.log_every == 0:
                    journal.line(state, lr=lr)
                if signal.agreed(state.step):
                    raise KeyboardInterrupt
    return feed.seconds


def lightning_trainer(task: Task, net: nn.Module) -> float:
    """`lightning.pytorch.Trainer`."""
    from lightning.pytorch import LightningModule, Trainer

    for library in ("lightning.pytorch", "lightning.fabric"):  # they set their levels when they are imported
        logging.getLogger(library).setLevel(logging.ERROR)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def configure_optimizers(self) -> Any:
            optimizer = task.sgd(self.net)
            scheduler = {"scheduler": LambdaLR(optimizer, task.schedule.lr_at), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    feed = Feed(task, task.pairs)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    Trainer(barebones=True, max_steps=task.all_steps, accelerator=device, devices=1).fit(Module(), feed)
    return feed.seconds


def transformers_trainer(task: Task, net: nn.Module) -> float:
    """`transformers.Trainer`."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class FedTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            return feed

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            return F.cross_entropy(model(inputs["images"]), inputs["labels"])

    feed = Feed(task, [{"images": images, "labels": labels} for images, labels in task.pairs])
    optimizer = task.sgd(net)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=task.all_steps, use_cpu=not torch.cuda.is_available(), max_grad_norm=0.0,
            save_strategy="no", logging_strategy="no", logging_nan_inf_filter=False, report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = FedTrainer(
            model=net, args=arguments, optimizers=(optimizer, LambdaLR(optimizer, task.schedule.lr_at))
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return feed.seconds
