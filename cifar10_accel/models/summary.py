"""Layer tables of the models: parameters, FLOPs of one image, receptive field.

One multiply-add counts as 2 FLOPs. Convolutions and linear layers are counted; norms, activations,
pools, additions and biases are not.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from cifar10_accel.components import is_import_path
from cifar10_accel.data.image_format import CIFAR10_IMAGES, ImageFormat
from cifar10_accel.models.layers import GlobalAveragePool, GlobalMaxPool
from cifar10_accel.models.receptive_field import TraceReceptiveFields, tensors, trace_of
from cifar10_accel.models.registry import BACKBONES, build_model
from cifar10_accel.settings import ModelSettings

WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POOLS = (GlobalMaxPool, GlobalAveragePool, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
LEGEND = "/2: stride 2; d2: dilation 2; dw: depthwise; RF: receptive field"
CONVENTION = "forward pass of one {0.size}x{0.size} image; 1 multiply-add = 2 FLOP, of convolutions and linear layers"


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer as it ran on one image."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # of one image
    parameters: int
    flops: int
    receptive_field: int  # side in pixels of the square that one output value depends on; may exceed the image


def describe(model: nn.Module, *, size: int = CIFAR10_IMAGES.size, channels: int = 3) -> list[LayerRow]:
    """Return one row per layer with parameters and per pool, in the order they run.

    A layer that runs twice has two rows, with its parameters in the first. Parameters of no layer that ran are in a row
    `others` at the end. The receptive field is the largest over
    all paths. Runs one image on the model's device; on the meta device nothing is computed. The model is left
    unchanged.

    Args:
        model: Any model of images (N, channels, size, size).
        size: Side of the image in pixels.
        channels: Of the image.
    """
    rows: list[LayerRow] = []
    device = next(model.parameters()).device
    was_training = model.training
    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if _has_row(layer):
                stack.callback(layer.register_forward_hook(_recorder(name, rows)).remove)
        stack.callback(model.train, was_training)
        stack.enter_context(torch.no_grad())
        image = torch.zeros(1, channels, size, size, device=device)
        stack.enter_context(TraceReceptiveFields(image))
        model.eval()
        model(image)
    others = sum(p.numel() for p in model.parameters()) - sum(row.parameters for row in rows)
    if others and rows:  # of layers that are not called as modules, such as the projection in an attention
        rows.append(replace(rows[-1], name="others", kind="", parameters=others, flops=0))
    return rows


def layers_table(settings: ModelSettings, *, num_classes: int, image_format: ImageFormat = CIFAR10_IMAGES) -> Table:
    """Return the table of one model, with a line per row of `describe`; the model is built on the meta device."""
    rows = _describe_settings(settings, num_classes, image_format)
    parameters, flops = _totals(rows)
    table = _table(f"{settings.model}, width {settings.width}", f"{CONVENTION.format(image_format)}\n{LEGEND}")
    table.show_footer = True
    table.add_column("layer", "total")
    table.add_column("type")
    table.add_column("output", justify="right")
    table.add_column("parameters", f"{parameters:,}", justify="right")
    table.add_column("MFLOP", f"{flops / 1e6:,.1f}", justify="right")
    table.add_column("RF", justify="right")
    for row in rows:
        shape = "x".join(str(side) for side in row.output_shape)
        megaflops = f"{row.flops / 1e6:,.1f}" if row.flops else ""
        name = row.name.removeprefix("backbone.")  # the table fits 80 columns without it
        table.add_row(name, row.kind, shape, f"{row.parameters:,}", megaflops, f"{row.receptive_field} px")
    return table


def models_table(settings: ModelSettings, *, num_classes: int, image_format: ImageFormat = CIFAR10_IMAGES) -> Table:
    """Return the table of the built-in models at the settings' width and head, with a line each."""
    table = _table(f"models at width {settings.width}", CONVENTION.format(image_format))
    table.add_column("model")
    for heading in ("parameters", "MFLOP", "receptive field"):
        table.add_column(heading, justify="right")
    for name in BACKBONES:
        rows = _describe_settings(settings.model_copy(update={"model": name}), num_classes, image_format)
        parameters, flops = _totals(rows)
        table.add_row(name, f"{parameters:,}", f"{flops / 1e6:,.1f}", f"{rows[-1].receptive_field} px")
    return table


def _table(title: str, caption: str) -> Table:
    """Return an empty table in a style narrow enough for 80 columns."""
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _totals(rows: list[LayerRow]) -> tuple[int, int]:
    return sum(row.parameters for row in rows), sum(row.flops for row in rows)


def _describe_settings(settings: ModelSettings, num_classes: int, image_format: ImageFormat) -> list[LayerRow]:
    device = "cpu" if is_import_path(settings.model) else "meta"  # models from elsewhere may compute while being built
    with torch.device(device):
        model = build_model(settings, num_classes=num_classes, image_format=image_format)
        return describe(model, size=image_format.size, channels=image_format.channels)


def _recorder(name: str, rows: list[LayerRow]) -> Callable[[nn.Module, Any, Any], None]:
    """Return a forward hook that appends the layer's row."""

    def record(layer: nn.Module, _: Any, results: Any) -> None:
        for output in tensors(results)[:1]:
            trace = trace_of(output)
            first_time = all(row.name != name for row in rows)
            rows.append(
                LayerRow(
                    name=name,
                    kind=_kind(layer),
                    output_shape=tuple(output.shape[1:]),
                    parameters=sum(p.numel() for p in layer.parameters(recurse=False)) if first_time else 0,
                    flops=_flops(layer, output),
                    receptive_field=0 if trace is None else trace.size,
                )
            )

    return record


def _has_row(module: nn.Module) -> bool:
    has_parameters = any(True for _ in module.parameters(recurse=False))
    return has_parameters or isinstance(module, (*WINDOWS, *POOLS))


def _flops(layer: nn.Module, output: Tensor) -> int:
    """Return 2 per multiply-add; each output value is a dot product with one row of the weight."""
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        return 2 * output.numel() * layer.weight[0].numel()
    return 0


def _kind(layer: nn.Module) -> str:
    """Return the layer's class, kernel size, stride and dilation in the abbreviations of `LEGEND`."""
    text = type(layer).__name__
    if isinstance(layer, WINDOWS):
        text += " {0}x{0}".format(_side(layer.kernel_size))
        text += f"/{_side(layer.stride)}" if _side(layer.stride) > 1 else ""
    if isinstance(layer, nn.Conv2d):
        text += f" d{_side(layer.dilation)}" if _side(layer.dilation) > 1 else ""
        text = f"dw {text}" if layer.groups == layer.in_channels > 1 else text
    return text


def _side(value: Any) -> int:
    """Return the side of a square that torch gives as 3 or (3, 3)."""
    return int(value[0] if isinstance(value, tuple) else value)
