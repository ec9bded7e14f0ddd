"""Start from trained weights: load what fits, and keep chosen parameters as they are."""

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.run_folder import locate_checkpoint

logger = logging.getLogger(__name__)

EXPORTED_PREFIX = "model."  # an exported file has the model inside a classifier


def read_weights(source: Path) -> checkpoint.Tensors:
    """Return the weights in a run folder (its newest checkpoint), a checkpoint or a .safetensors file.

    Raises:
        InputError: It is none of these, or is damaged.
    """
    if source.suffix != ".safetensors":
        return checkpoint.load(locate_checkpoint(source)[1]).evaluated
    try:
        return load_file(source)
    except (OSError, SafetensorError) as error:
        raise InputError(f"init_from: {source} cannot be read ({error}); give a run folder or a file") from None


def load_fitting(model: nn.Module, tensors: checkpoint.Tensors, *, source: Path) -> None:
    """Copy the tensors whose name and shape are the model's into it, and log which were not.

    Names are taken as they are or, if more fit so, without the prefix that they have in an exported file.

    Raises:
        InputError: None fits.
    """
    own = model.state_dict()
    prefix = EXPORTED_PREFIX
    inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    tensors = max(tensors, inner, key=lambda named: len(_fitting(own, named)))
    fitting = _fitting(own, tensors)
    if not any(value.is_floating_point() for value in fitting.values()):
        raise InputError(f"init_from: nothing in {source} fits this model; give weights of the same architecture")
    model.load_state_dict(fitting, strict=False)
    logger.info("init_from: %d of %d tensors from %s", len(fitting), len(own), source)
    left = [
        f"{name} {tuple(own[name].shape)} (there {tuple(tensors[name].shape) if name in tensors else 'missing'})"
        for name in own.keys() - fitting.keys()
    ]
    if left:
        logger.info("init_from: these start new: %s", _shortened(sorted(left)))
    unused = [name for name in tensors if name not in own]
    if unused:
        logger.info("init_from: not used: %s", _shortened(unused))


def _fitting(own: checkpoint.Tensors, tensors: checkpoint.Tensors) -> checkpoint.Tensors:
    return {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Keep the parameters whose names match one of the patterns, and the statistics of their norms, as they are.

    Args:
        model: Its modules get a hook that keeps frozen norms in evaluation mode.
        patterns: As of a shell: `stem.*`, `*.bias`. One without a wildcard also stands for all below it.

    Raises:
        SettingsError: A pattern matches no parameter, or everything is frozen.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise SettingsError(f"freeze: no parameter matches {pattern!r}; there are {_shortened(names)}")
    for name, parameter in model.named_parameters():
        if any(_matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingsError(f"freeze: {','.join(patterns)} leaves nothing to train; freeze fewer parameters")
    for name, module in model.named_modules():
        has_statistics = getattr(module, "running_mean", None) is not None
        if has_statistics and any(_matches(f"{name}.weight", pattern) for pattern in patterns):
            module.register_forward_pre_hook(_keep_in_evaluation_mode)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _keep_in_evaluation_mode(module: nn.Module, inputs: Any) -> None:
    module.eval()


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
