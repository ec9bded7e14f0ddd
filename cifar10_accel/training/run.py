"""A training and its results, as `fit` and `load_run` return it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cifar10_accel.component_names import name_of
from cifar10_accel.components import named_objects, user_code
from cifar10_accel.data.image_files import read_image
from cifar10_accel.errors import InputError, SettingsError, did_you_mean
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings

PREDICTED_AT_ONCE = 500  # images of at most 32 pixels a side


class Components(TypedDict, total=False):
    """Parts of a run as Python objects.

    A function or class of a module is recorded by its import path, so that every command can find it again. Any other
    object is recorded by a digest: to read such a run again give the model to `load_run`.
    """

    model: Any  # an nn.Module, which is copied, or a callable that returns one
    dataset: Any  # a Dataset, or a function that returns one
    augment: Any  # a list of Albumentations transforms, or a function that returns one; in place of all others
    loss: Any  # a function of (logits, labels)
    optimizer: Any  # a function or class of (parameter groups, lr)
    schedule: Any  # a function of (step, total_steps) that returns the LR as a multiple of max_lr
    tracker: Any  # an Accelerate GeneralTracker
    callbacks: Any  # a list of callbacks


def with_components(settings: Settings, components: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Return settings that name the components, and the components by these names.

    Raises:
        SettingsError: There is no such component, or the callbacks are no list.
        InputError: An object raises when its attributes are read.
    """
    objects: dict[str, Any] = {}

    def named(component: Any, setting: str) -> str:
        with user_code(f"reading a {type(component).__name__}", setting=setting):
            name = name_of(component)
        if not isinstance(component, str):
            objects[name] = component
        return name

    names: dict[str, Any] = {}
    for setting, component in components.items():
        if setting not in Components.__annotations__:
            hint = did_you_mean(setting, list(Components.__annotations__))
            raise SettingsError(f"fit: {setting!r} is no component{hint}; give settings in Settings(...)")
        if setting == "callbacks":
            if not isinstance(component, list | tuple):
                raise SettingsError(f"callbacks: a {type(component).__name__}; give a list of callbacks")
            names[setting] = tuple(named(callback, setting) for callback in component)
        else:
            name = named(component, setting)
            names[setting] = (name,) if setting == "augment" else name
    return settings.replace(**names) if names else settings, objects


class Run:
    """A run folder with what was trained in it. Everything is read when it is first used.

    Args:
        path: The run folder.
        objects: Components of the run that were given as Python objects, by their names in the settings.

    Attributes:
        path: The run folder.
    """

    def __init__(self, path: Path, objects: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._folder = RunFolder(path)
        self._objects = dict(objects or {})

    @cached_property
    def settings(self) -> Settings:
        """The settings of the run, resolved."""
        return self._folder.settings()

    @property
    def summary(self) -> dict[str, Any]:
        """Final metrics by name (accuracies in 0..1), steps and seconds; empty if the run has not finished."""
        return self._folder.read_json("summary.json")

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl: each has `step` and `epoch`, and some metrics."""
        return read_metrics(self._folder.metrics)

    @cached_property
    def classifier(self) -> Classifier:
        """The trained model with its normalisation: images (N, C, H, W), floats in 0..1, to logits (N, K)."""
        with named_objects(self._objects):
            return Classifier.from_run(self.path)

    @property
    def model(self) -> nn.Module:
        """The trained model on the CPU, in evaluation mode: normalised images (N, C, H, W) to logits (N, K).

        With averaged weights (`ema_decay`) it is the averaged model, whose accuracy counts.
        """
        return self.classifier.model

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.classifier.class_names

    def predictions(self, split: Literal["test", "val"] = "test") -> Predictions:
        """Return the predictions of the finished run for every image of a split.

        Raises:
            InputError: The run has not finished, or has no hold-out.
        """
        if split not in ("test", "val"):
            raise InputError(f"predictions: there is no split {split!r}; give 'test' or 'val'")
        return Predictions.load(self._folder.predictions if split == "test" else self._folder.val_predictions)

    def predict(self, images: npt.NDArray[np.uint8] | Sequence[Path | str] | Path | str) -> npt.NDArray[np.float32]:
        """Return the probability of each class, (N, K), for each image.

        Args:
            images: Pixels (N, H, W, C) or one image (H, W, C), uint8, of the size that the model was trained on; or
                image files, which are resized to it as the command `predict` does.

        Raises:
            InputError: The images have another shape or type, or a file is not an image.
        """
        image_format = self.classifier.image_format
        if isinstance(images, str | Path):
            images = [images]
        if not isinstance(images, np.ndarray):
            files = [read_image(Path(file), image_format.size, channels=image_format.channels) for file in images]
            if not files:
                raise InputError("predict: no images")
            images = np.stack(files)
        shape = (image_format.size, image_format.size, image_format.channels)
        pixels = images[None] if images.ndim == 3 else images
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
            raise InputError(
                f"predict: images are {images.dtype} {images.shape}, expected uint8 (N, {', '.join(map(str, shape))})"
            )
        parts = torch.split(torch.from_numpy(pixels), image_format.num_in_equal_memory(PREDICTED_AT_ONCE))
        with torch.inference_mode():
            return torch.cat([self.classifier.probabilities(part) for part in parts]).numpy()

    def __repr__(self) -> str:
        accuracy = self.summary.get("test/accuracy")
        state = "not finished" if accuracy is None else f"test accuracy {accuracy:.2%}"
        return f"Run({str(self.path)!r}, {state})"


def load_run(path: Path | str, *, model: Any = None) -> Run:
    """Return a run on disk, also one made by another command or on another machine. Nothing is trained.

    Args:
        path: The run folder.
        model: The model's module or factory again, if it was given to `fit` as an object that no import path names.

    Raises:
        InputError: `path` is no run folder.
    """
    run = Run(Path(path))
    name = run.settings.model  # read now: a path that is no run folder is an error here
    return run if model is None else Run(run.path, {name: model})
