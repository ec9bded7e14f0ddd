"""Layer tables of the models: parameters, FLOPs of one image, receptive field.

One multiply-add counts as 2 FLOPs. Convolutions and linear layers are counted; norms, activations,
pools, additions and biases are not.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cifar10_accel.models.layers import GlobalAveragePool, GlobalMaxPool
from cifar10_accel.models.registry import BACKBONES, build_model
from cifar10_accel.settings import ModelSettings

IMAGE_SHAPE = (3, 32, 32)
WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
GLOBAL_POOLS = (GlobalMaxPool, GlobalAveragePool, nn.AdaptiveAvgPool2d)  # the latter only ever to one pixel
LEGEND = "/2: stride 2; d2: dilation 2; dw: depthwise; RF: receptive field"
CONVENTION = "forward pass of one image; 1 multiply-add = 2 FLOP"


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer as it ran on one image."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # of one image
    parameters: int
    flops: int
    receptive_field: int  # side in pixels of the square that one output value depends on; may exceed the image


@dataclass(frozen=True, order=True)
class _ReceptiveField:
    """Receptive field of a tensor's values: squares of `size` pixels a side, `jump` pixels apart."""

    size: int = 1
    jump: int = 1

    def through(self, *, kernel: int, stride: int, dilation: int) -> "_ReceptiveField":
        """Return the field after one more sliding window (Araujo et al. 2019, https://distill.pub/2019/computing-receptive-fields)."""
        return _ReceptiveField(self.size + (kernel - 1) * dilation * self.jump, self.jump * stride)


def describe(model: nn.Module) -> list[LayerRow]:
    """Return one row per layer with parameters and per pool, in the order they run.

    A layer that runs twice has two rows, with its parameters in the first. The receptive field is the largest over
    all paths and is widened by modules only (not by a functional pool). Runs one image of `IMAGE_SHAPE` on the
    model's device; on the meta device nothing is computed. The model is left unchanged.
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
        stack.enter_context(_CarryReceptiveField())
        model.eval()
        model(torch.zeros(1, *IMAGE_SHAPE, device=device))
    return rows


def layers_table(settings: ModelSettings, *, num_classes: int) -> Table:
    """Return the table of one model, with a line per row of `describe`; the model is built on the meta device."""
    rows = _describe_settings(settings, num_classes)
    parameters, flops = _totals(rows)
    table = _table(f"{settings.model}, width {settings.width}", f"{CONVENTION}\n{LEGEND}")
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


def models_table(settings: ModelSettings, *, num_classes: int) -> Table:
    """Return the table of all models at the settings' width and head, with a line each."""
    table = _table(f"models at width {settings.width}", CONVENTION)
    table.add_column("model")
    for heading in ("parameters", "MFLOP", "receptive field"):
        table.add_column(heading, justify="right")
    for name in BACKBONES:
        rows = _describe_settings(settings.model_copy(update={"model": name}), num_classes)
        parameters, flops = _totals(rows)
        table.add_row(name, f"{parameters:,}", f"{flops / 1e6:,.1f}", f"{rows[-1].receptive_field} px")
    return table


def _table(title: str, caption: str) -> Table:
    """Return an empty table in a style narrow enough for 80 columns."""
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _totals(rows: list[LayerRow]) -> tuple[int, int]:
    return sum(row.parameters for row in rows), sum(row.flops for row in rows)


def _describe_settings(settings: ModelSettings, num_classes: int) -> list[LayerRow]:
    with torch.device("meta"):
        return describe(build_model(settings, num_classes=num_classes))


def _recorder(name: str, rows: list[LayerRow]) -> Callable[[nn.Module, Any, Tensor], None]:
    """Return a forward hook that appends the layer's row and stores the receptive field on its output."""

    def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        field = _field_after(layer, inputs[0])
        _set_field(output, field)
        first_time = all(row.name != name for row in rows)
        rows.append(
            LayerRow(
                name=name,
                kind=_kind(layer),
                output_shape=tuple(output.shape[1:]),
                parameters=sum(p.numel() for p in layer.parameters()) if first_time else 0,
                flops=_flops(layer, output),
                receptive_field=field.size,
            )
        )

    return record


class _CarryReceptiveField(TorchFunctionMode):
    """Mode in which the result of every operation (add, cat, ...) has the largest receptive field of its inputs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            _set_field(result, max(map(_field_of, _tensors(args)), default=_ReceptiveField()))
        return result


def _field_of(tensor: Tensor) -> _ReceptiveField:
    field: _ReceptiveField = getattr(tensor, "receptive_field", _ReceptiveField())
    return field


def _set_field(tensor: Tensor, field: _ReceptiveField) -> None:
    setattr(tensor, "receptive_field", field)  # noqa: B010  (tensors accept attributes, which mypy does not know)


def _has_row(module: nn.Module) -> bool:
    is_layer = not any(module.children())
    has_parameters = any(True for _ in module.parameters())
    return is_layer and (has_parameters or isinstance(module, (*WINDOWS, *GLOBAL_POOLS)))


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors in a call's arguments, including those in lists (`cat`)."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (list, tuple)) else []


def _field_after(layer: nn.Module, before: Tensor) -> _ReceptiveField:
    field = _field_of(before)
    if isinstance(layer, WINDOWS):
        dilation = _side(getattr(layer, "dilation", 1))
        return field.through(kernel=_side(layer.kernel_size), stride=_side(layer.stride), dilation=dilation)
    if isinstance(layer, GLOBAL_POOLS):
        return field.through(kernel=before.shape[-1], stride=1, dilation=1)
    return field


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
