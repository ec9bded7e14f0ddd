"""Models that are not built in: any `nn.Module`, by import path, from timm, or given as an object."""

import copy
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar10_accel.component_names import OBJECT_PREFIX, variables_of
from cifar10_accel.components import call_component, load_component, parameters_of, user_code
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import InputError, SettingsError, did_you_mean
from cifar10_accel.settings import OF_BUILT_IN, ModelSettings

TIMM = "timm:"


def build_imported(
    settings: ModelSettings, *, num_classes: int, image_format: ImageFormat, pretrained: bool
) -> nn.Module:
    """Build the model that `settings.model` names: timm:NAME, or the import path of a callable or of a module object.

    A callable gets those of num_classes, in_channels and image_size that its signature names (num_classes also if it
    takes any keyword), the settings of ModelSettings that were given, and `model_args`. A module that exists already is
    copied: an object, and one to which the function that returns it refers.

    Raises:
        SettingsError: A setting was given that the model does not take.
        InputError: It raises, or is no model from images to logits.
    """
    path = settings.model
    found: Any = timm_model(path) if path.startswith(TIMM) else load_component(path, setting="model")
    if isinstance(found, nn.Module):
        _require_no_arguments(settings, pretrained)
        model = found
    else:
        model = _call(found, settings, num_classes=num_classes, image_format=image_format, pretrained=pretrained)
    if model is found or _refers_to(found, model):
        with user_code(f"copying {path}", setting="model"):
            model = copy.deepcopy(model)
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {path} gave a {type(model).__name__}, not an nn.Module")
    require_logits(model, path, num_classes=num_classes, image_format=image_format)
    return model


def timm_model(path: str) -> Callable[..., nn.Module]:
    """Return a function that builds a model of timm from `timm:NAME`; weights are downloaded only if `pretrained`."""
    if importlib.util.find_spec("timm") is None:
        raise SettingsError(f"model: {path} needs timm, which is not installed; pip install 'cifar10-accel[timm]'")
    import timm

    name = path.removeprefix(TIMM)
    if not timm.is_model(name):
        raise SettingsError(f"model: timm has no model {name!r}{did_you_mean(name, timm.list_models())}")

    def build(
        num_classes: int, in_channels: int, image_size: int, pretrained: bool = False, **model_args: Any
    ) -> nn.Module:
        if timm.get_pretrained_cfg_value(name, "fixed_input_size"):  # such as a vision transformer
            model_args = {"img_size": image_size} | model_args
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **model_args
        )
        return model

    return build


@torch.no_grad()
def output_for_blank_images(model: nn.Module, *, channels: int, size: int) -> Any:
    """Return what a model gives in evaluation mode for two images of zeros, (2, channels, size, size).

    It is in training mode again afterwards if it was before.
    """
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        return model(torch.zeros(2, channels, size, size, device=device))
    finally:
        model.train(was_training)


def require_logits(model: nn.Module, path: str, *, num_classes: int, image_format: ImageFormat) -> None:
    """Check that a model turns two images into logits; let it return a tensor where it wraps them.

    Raises:
        InputError: It raises, or returns something else.
    """
    size, channels = image_format.size, image_format.channels
    with user_code(f"{path} on an image ({channels}, {size}, {size})", setting="model"):
        output = output_for_blank_images(model, channels=channels, size=size)
    model.register_forward_hook(_return_logits)  # some models wrap their logits in training mode only
    output = _logits_of(output)
    if not isinstance(output, Tensor):
        raise InputError(f"model: {path} returns a {type(output).__name__}, not logits (a tensor, or .logits)")
    if tuple(output.shape) != (2, num_classes):
        raise InputError(
            f"model: {path} returns {tuple(output.shape)} for 2 images, expected (2, {num_classes}): a logit for each "
            "of the classes of the data set; let its signature take num_classes"
        )


def _call(found: Any, settings: ModelSettings, *, num_classes: int, image_format: ImageFormat, pretrained: bool) -> Any:
    path = settings.model
    if not callable(found):
        raise InputError(f"model: {path} is a {type(found).__name__}, not a model or a function that returns one")
    names, takes_any = parameters_of(found)
    known = {"num_classes": num_classes, "in_channels": image_format.channels, "image_size": image_format.size}
    chosen = _given(settings) | ({"pretrained": True} if pretrained else {})
    refused = sorted(chosen.keys() - names.keys())
    if refused:
        raise SettingsError(
            f"{refused[0]}: {path} does not take it (it takes {', '.join(sorted(names)) or 'nothing'}); leave it out"
        )
    arguments = dict(settings.model_args)
    if takes_any and "num_classes" not in names:
        arguments = {"num_classes": num_classes} | arguments
    return call_component(found, known | chosen, path=path, setting="model", given=arguments)


def _refers_to(function: Any, model: Any) -> bool:
    """Return whether a model is the value of a variable that a function uses, so that it was not made by the call."""
    if not inspect.isfunction(function):
        return False
    return any(value is model for variables in variables_of(function) for value in variables.values())


def _given(settings: ModelSettings) -> dict[str, Any]:
    """Return the settings of built-in models that were given although the model is not built in."""
    return {name: getattr(settings, name) for name in OF_BUILT_IN["model"] & settings.model_fields_set}


def _require_no_arguments(settings: ModelSettings, pretrained: bool) -> None:
    given = [*_given(settings), *settings.model_args, *(["pretrained"] if pretrained else [])]
    if given:
        shown = settings.model.removeprefix(OBJECT_PREFIX)
        raise SettingsError(f"{given[0]}: {shown} is a finished model and takes no arguments; leave it out")


def _return_logits(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook for models that wrap their logits; tensors pass."""
    return _logits_of(output)


def _logits_of(output: Any) -> Any:
    """Return the logits in a dict or an object with `.logits`, as the models of transformers return them.

    Anything else is returned as it is.
    """
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
