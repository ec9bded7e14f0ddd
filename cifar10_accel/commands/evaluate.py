"""Evaluate a run or one of its checkpoints on the whole test set, on any number of processes."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.errors import InputError
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.relocate import require_data, settings_here
from cifar10_accel.runs.run_folder import RunFolder, locate_checkpoint
from cifar10_accel.settings import Settings
from cifar10_accel.settings.sources import given_by_environment
from cifar10_accel.training.evaluation import Evaluation, evaluate_dataset
from cifar10_accel.training.launch.precision import is_computed_well
from cifar10_accel.training.setup import RunSetup, set_up_run
from cifar10_accel.training.state import build_seeded_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready for evaluation: its model on the device, and its data."""

    folder: RunFolder
    setup: RunSetup
    model: nn.Module
    step: int  # steps that the model was trained for


def load_trained_run(source: Path, *, overrides: dict[str, str]) -> LoadedRun:
    """Load the model and the data of a run. All ranks must call this; nothing on disk is changed.

    Args:
        source: A run folder (its newest checkpoint is loaded) or a checkpoint in one. Averaged weights are used if
            the run has them.
        overrides: Settings that win over those of the run: data_dir, tta, eval_batch_size, precision.

    Raises:
        InputError: `source` is neither, or its data set is not here. Nothing is downloaded.
    """
    folder, path = locate_checkpoint(source)
    settings = settings_here(folder.settings(), overrides)
    if "precision" not in overrides and not given_by_environment(["precision"]):
        settings = _in_precision_of_this_device(settings)
    require_data(settings)
    setup = set_up_run(settings)
    setup = replace(setup, dataset=_as_trained_on(setup.dataset, folder, settings))
    model = build_seeded_model(setup.settings, setup.accelerator, setup.dataset)
    saved = checkpoint.load(path)
    checkpoint.load_into(model, saved.evaluated, source=path)
    return LoadedRun(folder, setup, model, saved.step)


def evaluate(source: Path, *, overrides: dict[str, str]) -> tuple[Evaluation, Settings]:
    """Return the evaluation of a run, and the settings it was made with (`load_trained_run`)."""
    run = load_trained_run(source, overrides=overrides)
    setup = run.setup
    return evaluate_dataset(setup.accelerator, run.model, setup.dataset, setup.settings), setup.settings


def _in_precision_of_this_device(settings: Settings) -> Settings:
    """Return the settings of a run in float32 if the device computes the run's precision no faster, or not at all."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or torch.device("cpu")
    if settings.precision == "auto" or is_computed_well(settings.precision, device):
        return settings
    logger.warning(
        "precision: float32, not the run's %s, which this device does not compute or only slowly", settings.precision
    )
    return settings.model_copy(update={"precision": "no"})


def _as_trained_on(dataset: Dataset, folder: RunFolder, settings: Settings) -> Dataset:
    """Return a data set with the normalisation of a run, after checking that it has the run's classes and format."""
    recorded, wanted = folder.read_json("environment.json").get("classes"), folder.image_format()
    if recorded and list(recorded) != list(dataset.class_names):
        raise InputError(
            f"the data set in {settings.data_dir} has the classes {', '.join(dataset.class_names)}, but "
            f"{folder.path} was trained on {', '.join(recorded)}; give the --data-dir of its data set"
        )
    found = dataset.image_format
    if (found.size, found.channels) != (wanted.size, wanted.channels):
        raise InputError(
            f"the data set in {settings.data_dir} has images of {found.size} pixels and {found.channels} channels, but "
            f"{folder.path} was trained on {wanted.size} and {wanted.channels}; give the --data-dir of its data set"
        )
    return dataset.normalised_as(wanted)
