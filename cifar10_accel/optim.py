"""Optimizer, parameter groups and weight averaging of a model."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifar10_accel.settings import OptimSettings


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """The optimizer of `model`; its LR is set before every update, so it starts at zero."""
    groups = parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(settings.momentum, 0.999))
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, nesterov=nesterov)


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, object]]:
    """Weights, then norm parameters and biases (everything with one dimension), each with its decay."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    norms_and_biases = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": norms_and_biases, "weight_decay": settings.weight_decay if settings.decay_norm_and_bias else 0.0},
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every parameter group this LR."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of weights and norm statistics, or None without `ema_decay`.

    Call it before the model is compiled or prepared: it copies the plain module.
    """
    if decay is None:
        return None
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
