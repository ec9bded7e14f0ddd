"""The contestants that are Trainers, of `lightning` and `transformers`, with the usual ResNet-18 recipe for CIFAR-10.

The recipe: torchvision's ResNet-18 with a 3x3 stem without pooling, batches of 128, random crop with padding 4 and
flip, SGD with momentum 0.9 and weight decay 5e-4, one cycle of the LR with a maximum of 0.1. The batches are made by
indexing tensors, which costs a Trainer less than the usual transforms of single images; the memory format is
channels_last. Each Trainer is in its mode with the least besides training, as in `benchmarks.contestants`. The race
starts this module as a process: short trainings give the seconds per step, the last one fills the budget.
"""

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contestants import TRAINING_ALONE, silence_lightning
from benchmarks.race.results import RaceResult
from cifar10_accel.data.augment.batched import normalize
from cifar10_accel.data.dataset import Split
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.settings import Settings

BATCH_SIZE = 128
MAX_LR = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
PADDING = 4
CALIBRATION_SHARE = 0.05  # of the budget; a contestant's speed over less time says too little about all of it
CALIBRATION_STEPS = 6  # for a first estimate
WARM_STEPS = 2  # of a calibration: they choose kernels and fill caches
NUM_POINTS = 6  # evaluations, evenly spaced; the last is at the end, on the whole test set
POINT_IMAGES = 2000  # test images of the evaluations before
EVAL_BATCH_SIZE = 500


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training of a Trainer: `steps` steps, with a call of `on_step_end(model)` after each."""

    model: nn.Module
    loader: "AugmentedBatches"
    precision: str  # "bf16" or "no"
    on_step_end: Callable[[nn.Module], None]

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.loader.steps

    def optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Return the optimizer, and the scheduler of its LR that steps with it."""
        sgd = torch.optim.SGD(self.model.parameters(), lr=MAX_LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            sgd, max_lr=MAX_LR, total_steps=self.steps + 1, cycle_momentum=False
        )
        return sgd, cycle


class AugmentedBatches:
    """`steps` batches of randomly cropped and mirrored training images: {"images": (B, 3, H, W), "labels": (B,)}.

    Every epoch has another order; a last batch that is not full is dropped, unless there is no other.
    """

    def __init__(self, split: Split, *, steps: int, seed: int, batch_size: int = BATCH_SIZE) -> None:
        self.steps, self._batch_size = steps, batch_size
        images = torch.from_numpy(split.images)
        self._size = images.shape[1]
        self._padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))  # (N, H, W, C) uint8
        self._labels = torch.from_numpy(split.labels)
        self._random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(self.steps):
            if len(order) < self._batch_size:
                order = torch.randperm(len(self._labels), generator=self._random)
            chosen, order = order[: self._batch_size], order[self._batch_size :]
            yield {"images": normalize(self._crops(chosen), torch.float32), "labels": self._labels[chosen]}

    def _crops(self, chosen: Tensor) -> Tensor:
        """Return (B, C, H, W) uint8, each image with its own offsets, mirrored or not."""
        draw = partial(torch.randint, size=(len(chosen), 1), generator=self._random)
        along = torch.arange(self._size)
        mirrored = torch.where(draw(2) == 1, along.flip(0), along)
        rows, columns = along + draw(2 * PADDING + 1), mirrored + draw(2 * PADDING + 1)
        return self._padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class TrainingClock:
    """Seconds of training after each step, and the accuracy after some, whose evaluation is not counted.

    Args:
        evaluations: By step after which it is due: a function that returns the accuracy of the model.
    """

    def __init__(self, evaluations: Mapping[int, Callable[[nn.Module], float]]) -> None:
        self._evaluations = evaluations
        self._since = 0.0
        self.seconds = [0.0]  # at the start and after each step
        self.points: list[tuple[float, float]] = []

    def start(self) -> None:
        """Start counting; the first step is next."""
        self._since = time.perf_counter()

    def step_ended(self, model: nn.Module) -> None:
        """Count a step, and evaluate if that is due."""
        now = time.perf_counter()
        self.seconds.append(self.seconds[-1] + now - self._since)
        self._since = now
        evaluate = self._evaluations.get(len(self.seconds) - 1)
        if evaluate is not None:
            self.points.append((self.seconds[-1], evaluate(model)))
            self._since = time.perf_counter()

    def seconds_per_step(self) -> float:
        """Return the mean, without the first steps."""
        return (self.seconds[-1] - self.seconds[WARM_STEPS]) / (len(self.seconds) - 1 - WARM_STEPS)


def resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with the usual stem for 32x32 images."""
    from torchvision.models import resnet18 as imagenet_resnet18

    model: nn.Module = imagenet_resnet18(weights=None, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def accuracy(model: nn.Module, split: Split, *, precision: str) -> float:
    """Return the plain accuracy of a model, which is in training mode again afterwards."""
    model.eval()
    images, labels = torch.from_numpy(split.images).permute(0, 3, 1, 2), torch.from_numpy(split.labels)
    correct = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for part in torch.arange(len(labels)).split(EVAL_BATCH_SIZE):  # type: ignore[no-untyped-call]
            logits = model(normalize(images[part], torch.float32))
            correct += int((logits.argmax(1) == labels[part]).sum())
    model.train()
    return correct / len(labels)


def lightning_trainer(task: Task, start: Callable[[], None]) -> None:
    """`lightning.pytorch.Trainer`; calls `start` before the first step."""
    from lightning.pytorch import LightningModule, Trainer

    silence_lightning()

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model

        def on_train_start(self) -> None:
            start()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.model(batch["images"]), batch["labels"])

        def on_train_batch_end(self, *_: Any) -> None:
            task.on_step_end(self.model)

        def configure_optimizers(self) -> Any:
            optimizer, scheduler = task.optimizer()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    trainer = Trainer(
        barebones=True,
        max_steps=task.steps,
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if task.precision == "bf16" else "32-true",
    )
    trainer.fit(Module(), task.loader)


def transformers_trainer(task: Task, start: Callable[[], None]) -> None:
    """`transformers.Trainer`; calls `start` before the first step."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class PlainTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            return task.loader

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            return F.cross_entropy(model(inputs["images"]), inputs["labels"])

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            task.on_step_end(task.model)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=task.steps,
            use_cpu=True,
            bf16=task.precision == "bf16",
            **TRAINING_ALONE,
        )
        trainer = PlainTrainer(model=task.model, args=arguments, optimizers=task.optimizer(), callbacks=[Steps()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()


TRAINERS: dict[str, Callable[[Task, Callable[[], None]], None]] = {
    "lightning": lightning_trainer,
    "transformers": transformers_trainer,
}


@dataclass(frozen=True, kw_only=True)
class TrainerRace:
    """The race of one Trainer: short trainings that are timed, then one that fills the budget."""

    name: str  # key of TRAINERS
    budget: float  # seconds
    precision: str
    seed: int
    train: Split
    test: Split
    make_model: Callable[[], nn.Module] = resnet18
    batch_size: int = BATCH_SIZE

    def run(self) -> RaceResult:
        """Calibrate and train; return the result of the training."""
        seconds_per_step = self._train(CALIBRATION_STEPS, {}).seconds_per_step()
        longer = int(CALIBRATION_SHARE * self.budget / seconds_per_step)
        if longer > CALIBRATION_STEPS:
            seconds_per_step = self._train(longer, {}).seconds_per_step()
        steps = max(1, int(self.budget / seconds_per_step))
        some = self.test.take(np.arange(min(POINT_IMAGES, len(self.test))))
        evaluations = {
            round(steps * point / NUM_POINTS): partial(accuracy, split=some, precision=self.precision)
            for point in range(1, NUM_POINTS)
        }
        evaluations[steps] = partial(accuracy, split=self.test, precision=self.precision)
        clock = self._train(steps, evaluations)
        seconds, plain = clock.points[-1]
        num_images = steps * min(self.batch_size, len(self.train.labels))
        return RaceResult(
            trained="ResNet-18",
            precision=self.precision,
            plain=plain,
            tta=None,
            seconds=seconds,
            num_images=num_images,
            epochs=num_images / len(self.train.labels),
            points=clock.points,
        )

    def _train(self, steps: int, evaluations: Mapping[int, Callable[[nn.Module], float]]) -> TrainingClock:
        torch.manual_seed(self.seed)
        clock = TrainingClock(evaluations)
        loader = AugmentedBatches(self.train, steps=steps, seed=self.seed, batch_size=self.batch_size)
        task = Task(
            model=self.make_model().to(memory_format=torch.channels_last),
            loader=loader,
            precision=self.precision,
            on_step_end=clock.step_ended,
        )
        TRAINERS[self.name](task, clock.start)
        return clock


def main(name: str, request: str, out: str) -> None:
    """Run the race of the Trainer `name`; `request` is JSON with its budget and precision and the settings' flags."""
    warnings.filterwarnings("ignore", module="lightning")
    given = json.loads(request)
    settings = Settings(**given["flags"])
    dataset = load_dataset(settings, seed=settings.seed)
    race = TrainerRace(
        name=name,
        budget=given["budget"],
        precision=given["precision"],
        seed=settings.seed,
        train=dataset.train,
        test=dataset.test,
    )
    Path(out).write_text(json.dumps(asdict(race.run())))


if __name__ == "__main__":
    main(*sys.argv[1:])
