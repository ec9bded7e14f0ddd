"""Optimizer, parameter groups and weight averaging of a model."""

from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifar10_accel.muon import Muon
from cifar10_accel.settings import OptimSettings


def make_optimizer(model: nn.Module, settings: OptimSettings, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer of `model`; its LR is set before every update, so it starts at zero.

    fused: in few kernels, which also do the work of fp16's loss scaler. Otherwise the host waits in every update to
    hear from the device whether a gradient has overflowed.
    """
    groups = parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(settings.momentum, 0.999), fused=fused)
    nesterov = settings.nesterov and settings.momentum > 0
    rule = Muon if settings.optimizer == "muon" else torch.optim.SGD
    optimizer = rule(groups, lr=0.0, momentum=settings.momentum, nesterov=nesterov, fused=fused)
    if fused and settings.momentum > 0:
        # The kernel makes it of the first gradient, and of whatever lies in memory if that one has overflowed.
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """What is trained: weights; norm parameters and biases (everything with one dimension); what Muon turns.

    `lr_factor`: LR of the group as a multiple of the schedule's.
    """
    decay, bias_factor = settings.weight_decay, settings.bias_lr_factor
    bias_decay = decay / bias_factor if settings.decay_norm_and_bias else 0.0
    kinds: dict[str, dict[str, Any]] = {
        "weight": {"lr_factor": 1.0, "weight_decay": decay},
        # LR times decay stays: a bias that learns faster is not pulled back faster
        "bias": {"lr_factor": bias_factor, "weight_decay": bias_decay},
        "orthogonal": {
            "lr_factor": settings.conv_lr_factor, "momentum": settings.conv_momentum, "weight_decay": 0.0,
            "orthogonal": True,
        },
    }  # fmt: skip
    members = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_filter_bank = settings.optimizer == "muon" and parameter.ndim == 4
            members["orthogonal" if is_filter_bank else "weight" if parameter.ndim > 1 else "bias"].append(parameter)
    return [options | {"params": members[kind]} for kind, options in kinds.items() if kind in members]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every parameter group its multiple of this LR."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def make_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of weights and norm statistics, or None without `ema_decay`.

    Call it before the model is compiled or prepared: it copies the plain module.
    """
    if decay is None:
        return None
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
