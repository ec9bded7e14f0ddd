"""Optimizer, parameter groups and weight averaging of a model."""

from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cifar10_accel.components import is_import_path, load_component, parameters_of, require_taken, user_code
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.settings import OF_BUILT_IN, OptimSettings
from cifar10_accel.training.optimization.muon import Muon


def make_optimizer(
    model: nn.Module, settings: OptimSettings, *, fused: bool = False, muon_dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """Return the optimizer of `model`, with LR zero: `set_lr` sets it before every step.

    Args:
        model: Its trained parameters are grouped by `parameter_groups`.
        settings: Name the optimizer and its hyperparameters.
        fused: Use fused kernels, which also apply fp16's loss scale. Without them the host waits in every step for the
            device to report whether a gradient has overflowed.
        muon_dtype: Precision of Muon's matrix products on a CPU.
    """
    groups = parameter_groups(model, settings)
    if is_import_path(settings.optimizer):
        return _imported_optimizer(groups, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(settings.momentum, 0.999), fused=fused)
    nesterov = settings.nesterov and settings.momentum > 0
    options: dict[str, Any] = {"lr": 0.0, "momentum": settings.momentum, "nesterov": nesterov, "fused": fused}
    if settings.optimizer == "muon":
        optimizer: torch.optim.SGD = Muon(groups, iteration_dtype=muon_dtype, **options)
    else:
        optimizer = torch.optim.SGD(groups, **options)
    if fused and settings.momentum > 0:
        # The fused kernel would leave the momentum uninitialised if the first gradient overflows.
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _imported_optimizer(groups: list[dict[str, Any]], settings: OptimSettings) -> Optimizer:
    """Call a factory of (parameter groups, lr) with `optimizer_args`; torch's optimizer classes are such factories.

    Raises:
        SettingsError: A setting of the built-in optimizers was given that it does not take.
        InputError: It raises, or returns no optimizer.
    """
    path = settings.optimizer
    factory = load_component(path, setting="optimizer")
    names, takes_any = parameters_of(factory)
    if not takes_any:
        require_taken(settings.optimizer_args, sorted(names.keys() - {"params"}), path=path, setting="optimizer")
    given = {name: getattr(settings, name) for name in OF_BUILT_IN["optimizer"] & settings.model_fields_set}
    for name in sorted(given.keys() - names.keys()):
        raise SettingsError(f"{name}: {path} does not take it; leave it out, or give what it takes in optimizer_args")
    arguments = {"lr": getattr(settings, "max_lr", 0.1)} | given | settings.optimizer_args
    with user_code(path, setting="optimizer"):
        optimizer = factory(groups, **arguments)
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer: {path} gave a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """Group the trained parameters: weights, biases and norm parameters (one dimension), convolutions under Muon.

    Returns:
        Parameter groups with their options; `lr_factor` is the group's LR as a multiple of the schedule's.
    """
    decay, bias_factor = settings.weight_decay, settings.bias_lr_factor
    bias_decay = decay / bias_factor if settings.decay_norm_and_bias else 0.0
    kinds: dict[str, dict[str, Any]] = {
        "weight": {"lr_factor": 1.0, "weight_decay": decay},
        # LR times decay stays the same, so a higher LR of the biases does not decay them faster.
        "bias": {"lr_factor": bias_factor, "weight_decay": bias_decay},
        "orthogonal": {
            "lr_factor": settings.conv_lr_factor,
            "momentum": settings.conv_momentum,
            "nesterov": settings.nesterov,
            "weight_decay": 0.0,
            "orthogonal": True,
        },
    }
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    filters = {dict(layer.named_parameters(recurse=False)).get("weight") for layer in convolutions}
    members = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_orthogonal = settings.optimizer == "muon" and parameter in filters
            members["orthogonal" if is_orthogonal else "weight" if parameter.ndim > 1 else "bias"].append(parameter)
    return [options | {"params": members[kind]} for kind, options in kinds.items() if kind in members]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the LR of every parameter group to its multiple of `lr`."""
    for group in optimizer.param_groups:
        value = lr * group.get("lr_factor", 1.0)  # an optimizer of one's own may have groups of its own
        if isinstance(group["lr"], Tensor):  # where steps are CUDA graphs
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def make_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return an exponential moving average of weights and norm statistics; None if `decay` is None.

    Call this before the model is compiled or prepared, because it copies the plain module.
    """
    if decay is None:
        return None
    return _ExponentialAverage(model, decay=decay)


class _ExponentialAverage(AveragedModel):
    """AveragedModel of weights and buffers that never waits for the device.

    torch's own copies its count of averages to the device in every step, at which the host waits. Here the count stays
    on the host, and the caller increments it. Buffers that are not floats (the norms' count of batches) are copied.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._new_share = 1 - decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the present weights; the first call copies them."""
        pairs = zip(_tensors(self.module), _tensors(model), strict=True)
        floats: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        for average, value in pairs:
            is_averaged = average.is_floating_point() or average.is_complex()
            (floats if is_averaged else others).append((average, value))
        is_first = bool(self.n_averaged == 0)
        if floats and not is_first:
            torch._foreach_lerp_([pair[0] for pair in floats], [pair[1] for pair in floats], self._new_share)
        if copied := others + (floats if is_first else []):
            torch._foreach_copy_([pair[0] for pair in copied], [pair[1] for pair in copied])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def prepare(accelerator: Accelerator, model: nn.Module, settings: OptimSettings) -> tuple[nn.Module, Optimizer]:
    """Return the model and its optimizer as prepared by Accelerate. All ranks must call this.

    AcceleratedOptimizer is unwrapped unless fp16's loss scaler needs it: its step() scans the installed packages twice
    on every call.
    """
    muon_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    is_gpu = accelerator.device.type == "cuda"
    optimizer = make_optimizer(model, settings, fused=is_gpu, muon_dtype=muon_dtype)
    wrapped_model, prepared = accelerator.prepare(model, optimizer)
    plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    needs_no_wrapper = accelerator.scaler is None and accelerator.distributed_type in plain
    return wrapped_model, prepared.optimizer if needs_no_wrapper else prepared
