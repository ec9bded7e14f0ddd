"""Evaluates a run or a checkpoint: every test image once, on any number of processes."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from cifar10_accel import checkpoint
from cifar10_accel.data.cifar10 import Dataset, load
from cifar10_accel.launch import make_accelerator
from cifar10_accel.results import Evaluation, evaluate_all
from cifar10_accel.run_folder import RunFolder, locate_checkpoint
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import build_net


@dataclass(frozen=True)
class Reopened:
    """A run as it can be evaluated again: the trained net on the device, and its data."""

    folder: RunFolder
    settings: Settings
    accelerator: Accelerator
    dataset: Dataset
    net: nn.Module
    step: int  # updates that the net has behind it


def reopen(source: Path, *, overrides: dict[str, str]) -> Reopened:
    """The run of a run folder (its newest checkpoint) or of one checkpoint in it.

    The run's own settings decide, but for `overrides` (data_dir, tta, eval_batch_size, precision).
    Averaged weights are used if the run has them. Changes nothing on disk. All ranks must call this;
    raises `InputError` for a folder that is neither.
    """
    run, path = locate_checkpoint(source)
    settings = Settings(**(run.settings().model_dump(mode="json") | overrides))
    accelerator = make_accelerator(settings)
    dataset = load(settings, seed=settings.seed)
    net = build_net(settings, accelerator, num_classes=len(dataset.class_names))
    saved = checkpoint.load(path)
    checkpoint.load_into(net, saved.evaluated, source=path)
    return Reopened(run, settings, accelerator, dataset, net, saved.step)


def evaluate(source: Path, *, overrides: dict[str, str]) -> tuple[Evaluation, Settings]:
    """The evaluation of what `reopen` finds, and the settings it was made with. All ranks must call this."""
    run = reopen(source, overrides=overrides)
    return evaluate_all(run.accelerator, run.net, run.dataset, run.settings), run.settings
