"""Evaluates a run or a checkpoint: every test image once, on any number of processes."""

from pathlib import Path

from cifar10_accel import checkpoint
from cifar10_accel.data.cifar10 import load
from cifar10_accel.launch import make_accelerator
from cifar10_accel.results import Evaluation, evaluate_all
from cifar10_accel.run_folder import locate_checkpoint
from cifar10_accel.settings import Settings
from cifar10_accel.training_state import build_net


def evaluate(source: Path, *, overrides: dict[str, str]) -> tuple[Evaluation, Settings]:
    """The evaluation of a run folder (its newest checkpoint) or of one checkpoint in it.

    The run's own settings decide, but for `overrides` (data_dir, tta, eval_batch_size, precision).
    Averaged weights are used if the run has them. Changes nothing on disk. All ranks must call this;
    raises `InputError` for a folder that is neither.
    """
    run, path = locate_checkpoint(source)
    settings = Settings(**(run.settings().model_dump(mode="json") | overrides))
    accelerator = make_accelerator(settings)
    dataset = load(settings, seed=settings.seed)
    net = build_net(settings, accelerator, num_classes=len(dataset.class_names))
    checkpoint.load_into(net, checkpoint.load(path).evaluated, source=path)
    return evaluate_all(accelerator, net, dataset, settings), settings
