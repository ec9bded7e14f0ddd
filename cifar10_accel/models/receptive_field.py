"""Receptive fields: the pixels that a value of a feature map depends on, traced through the forward pass of any model.

The arithmetic is that of Araujo et al. 2019 (https://distill.pub/2019/computing-receptive-fields). Every tensor that
is computed from the image has a `Trace`, which follows the functions that are called (convolutions, pools, padding,
slices, ...): modules and functional calls are treated alike. A function that is not known, or that mixes all positions
(flatten, attention), gives values without a position, which depend on everything that its inputs depend on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions that may keep the shape and yet move or mix positions; any other that keeps it is taken to be local.
NOT_LOCAL = {"flip", "fliplr", "flipud", "roll", "rot90", "sort", "cumsum", "softmax", "matmul", "__matmul__", "bmm"}
NOT_LOCAL |= {"einsum", "grid_sample", "scaled_dot_product_attention", "fft_fft2", "fft_ifft2"}

RESHAPES = ("view", "reshape", "unflatten", "squeeze", "unsqueeze")


@dataclass(frozen=True, order=True)
class Field:
    """Receptive fields of the positions of a feature map along one axis of the image, in pixels."""

    size: float = 1  # pixels that the value at one position depends on; may exceed the image
    jump: float = 1  # pixels from one position to the next
    start: float = 0  # centre of the first position; the centre of pixel k is k

    def through(self, *, kernel: int, stride: float = 1, dilation: int = 1, padding: int = 0) -> "Field":
        """Return the field after a sliding window; padding: positions added before the first one."""
        reach = (kernel - 1) * dilation
        return Field(self.size + reach * self.jump, self.jump * stride, self.start + (reach / 2 - padding) * self.jump)

    def joined(self, positions: int) -> "Field":
        """Return the field of a value that depends on all positions."""
        return self.through(kernel=positions, stride=positions)


@dataclass(frozen=True)
class Trace:
    """Receptive fields of the values of a tensor."""

    rows: Field = Field()
    columns: Field = Field()
    dims: tuple[int, int] | None = (2, 3)  # dimensions that are rows and columns; None: its values have no position

    @property
    def size(self) -> int:
        """Side in pixels of the square that one value depends on."""
        return round(max(self.rows.size, self.columns.size))


class TraceReceptiveFields(TorchFunctionMode):
    """Mode in which every tensor that is computed from an image gets its trace.

    Args:
        image: The tensor (N, C, H, W) in which the traces begin.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        _set_trace(image, Trace())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        inputs = [tensor for tensor in tensors([args, list(given.values())]) if trace_of(tensor) is not None]
        if inputs:
            name = str(getattr(func, "__name__", ""))
            for output in tensors(result):
                _set_trace(output, _trace_after(name, args, given, inputs, output))
        return result


def trace_of(tensor: Tensor) -> Trace | None:
    """Return the trace of a tensor; None if it was not computed from the image."""
    trace: Trace | None = getattr(tensor, "receptive_field", None)
    return trace


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in arguments or results, including those in nested lists and tuples."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in tensors(value)] if isinstance(values, (list, tuple)) else []


def _set_trace(tensor: Tensor, trace: Trace) -> None:
    setattr(tensor, "receptive_field", trace)  # noqa: B010  (tensors accept attributes, which mypy does not know)


def _trace_after(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[Tensor], output: Tensor
) -> Trace:
    """Return the trace of an output of the function of this name; inputs: those with a trace."""
    if not args and "input" in kwargs:
        args = (kwargs["input"],)
    first, trace = inputs[0], trace_of(inputs[0])
    if trace is not None and trace.dims is not None and args and args[0] is first:
        if name in WINDOWS:
            parameters, after = WINDOWS[name]
            given = dict(zip(parameters, args[1:], strict=False)) | dict(kwargs)
            calls = [_Call(first, output, given, axis, dim) for axis, dim in enumerate(trace.dims)]
            return Trace(after(trace.rows, calls[0]), after(trace.columns, calls[1]), trace.dims)
        if name in ("permute", "transpose", "swapaxes"):
            return replace(trace, dims=_permuted_dims(name, first.ndim, [*args[1:], *kwargs.values()], trace.dims))
        if (
            name in RESHAPES
            and trace.dims == (first.ndim - 2, first.ndim - 1)
            and output.shape[-2:] == first.shape[-2:]
        ):
            return replace(trace, dims=(output.ndim - 2, output.ndim - 1))
        if name == "__getitem__":
            slices = _full_slices(args[1], first.ndim)
            if slices is not None:
                rows, columns = (slices[dim].indices(first.shape[dim]) for dim in trace.dims)
                return Trace(_sliced(trace.rows, rows), _sliced(trace.columns, columns), trace.dims)
    return _combined(name, inputs, output)


def _combined(name: str, inputs: Sequence[Tensor], output: Tensor) -> Trace:
    """Return the trace after any other function: local if the output has the rows and columns of an input."""
    traces = {id(tensor): trace for tensor in inputs if (trace := trace_of(tensor)) is not None}
    for tensor in sorted(inputs, key=lambda tensor: traces[id(tensor)].rows, reverse=True):
        trace = traces[id(tensor)]
        if trace.dims is None or name in NOT_LOCAL or (name == "linear" and tensor.ndim - 1 in trace.dims):
            continue
        if tensor.ndim == output.ndim and all(tensor.shape[dim] == output.shape[dim] for dim in trace.dims):
            sizes = [max(field.size for field in fields) for fields in _axes(traces.values())]
            return replace(
                trace, rows=replace(trace.rows, size=sizes[0]), columns=replace(trace.columns, size=sizes[1])
            )
    joined = [_joined(tensor, traces[id(tensor)]) for tensor in inputs]
    rows, columns = _axes(joined)
    return Trace(max(rows), max(columns), None)


def _axes(traces: Any) -> tuple[list[Field], list[Field]]:
    return [trace.rows for trace in traces], [trace.columns for trace in traces]


def _joined(tensor: Tensor, trace: Trace) -> Trace:
    """Return the trace of values that depend on all positions of the tensor."""
    if trace.dims is None:
        return trace
    height, width = (tensor.shape[dim] for dim in trace.dims)
    return Trace(trace.rows.joined(height), trace.columns.joined(width), None)


@dataclass(frozen=True)
class _Call:
    """One axis of a call of a function that slides a window over a tensor."""

    image: Tensor
    output: Tensor
    given: Mapping[str, Any]  # parameters by name, without the tensor itself
    axis: int  # 0: rows, 1: columns
    dim: int

    @property
    def before(self) -> int:
        """Positions along the axis, of the input."""
        return self.image.shape[self.dim]

    @property
    def after(self) -> int:
        """Positions along the axis, of the output."""
        return self.output.shape[self.dim]

    def get(self, parameter: str, default: int) -> int:
        """Return a parameter that torch takes as 3, (3,) or (3, 3)."""
        value = self.given.get(parameter)
        if isinstance(value, (tuple, list)):
            value = value[min(self.axis, len(value) - 1)] if value else None
        return default if value is None else int(value)

    def padding(self, reach: int) -> int:
        """Return the positions that are added before the first one."""
        value = self.given.get("padding")
        return (reach // 2 if value == "same" else 0) if isinstance(value, str) else self.get("padding", 0)


def _after_convolution(field: Field, call: _Call) -> Field:
    kernel, dilation = call.given["weight"].shape[2 + call.axis], call.get("dilation", 1)
    padding = call.padding((kernel - 1) * dilation)
    return field.through(kernel=kernel, stride=call.get("stride", 1), dilation=dilation, padding=padding)


def _after_pool(field: Field, call: _Call) -> Field:
    kernel = call.get("kernel_size", 1)
    padding, dilation = call.get("padding", 0), call.get("dilation", 1)
    return field.through(kernel=kernel, stride=call.get("stride", kernel), dilation=dilation, padding=padding)


def _after_adaptive_pool(field: Field, call: _Call) -> Field:
    return field.through(kernel=-(-call.before // call.after), stride=call.before / call.after)


def _after_transposed_convolution(field: Field, call: _Call) -> Field:
    stride = call.get("stride", 1)
    reach = (call.given["weight"].shape[2 + call.axis] - 1) * call.get("dilation", 1)
    start = field.start + (call.get("padding", 0) - reach / 2) / stride * field.jump
    return Field(field.size + reach // stride * field.jump, field.jump / stride, start)


def _after_interpolation(field: Field, call: _Call) -> Field:
    step = call.before / call.after
    return Field(field.size, field.jump * step, field.start + (step - 1) / 2 * field.jump)


def _after_unshuffle(field: Field, call: _Call) -> Field:
    factor = call.get("downscale_factor", 1)
    return field.through(kernel=factor, stride=factor)


def _after_padding(field: Field, call: _Call) -> Field:
    pads = call.given["pad"]  # pairs of before and after, from the last dimension on
    pair = 2 * (call.image.ndim - 1 - call.dim)
    return replace(field, start=field.start - (pads[pair] if pair < len(pads) else 0) * field.jump)


# Names of the parameters after the tensor, in their order, and the rule.
WINDOWS: dict[str, tuple[tuple[str, ...], Callable[[Field, _Call], Field]]] = {
    "conv2d": (("weight", "bias", "stride", "padding", "dilation"), _after_convolution),
    "max_pool2d": (("kernel_size", "stride", "padding", "dilation"), _after_pool),
    "avg_pool2d": (("kernel_size", "stride", "padding"), _after_pool),
    "lp_pool2d": (("norm_type", "kernel_size", "stride"), _after_pool),
    "adaptive_avg_pool2d": (("output_size",), _after_adaptive_pool),
    "adaptive_max_pool2d": (("output_size",), _after_adaptive_pool),
    "conv_transpose2d": (
        ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        _after_transposed_convolution,
    ),
    "interpolate": ((), _after_interpolation),
    "pixel_unshuffle": (("downscale_factor",), _after_unshuffle),
    "pad": (("pad",), _after_padding),
}


def _permuted_dims(name: str, ndim: int, given: Sequence[Any], dims: tuple[int, int]) -> tuple[int, int]:
    """Return the new places of rows and columns."""
    numbers = [
        int(number) % ndim for value in given for number in (value if isinstance(value, (tuple, list)) else [value])
    ]
    order = numbers
    if name != "permute":
        order = list(range(ndim))
        first, second = numbers
        order[first], order[second] = second, first
    return order.index(dims[0]), order.index(dims[1])


def _full_slices(index: Any, ndim: int) -> list[slice] | None:
    """Return a slice for each dimension; None if the index has anything but slices and an ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(part, slice) and part is not Ellipsis for part in parts):
        return None
    place = next((k for k, part in enumerate(parts) if part is Ellipsis), len(parts))
    rest = [slice(None)] * (ndim - sum(part is not Ellipsis for part in parts))
    return [part for part in [*parts[:place], *rest, *parts[place + 1 :]] if isinstance(part, slice)]


def _sliced(field: Field, indices: tuple[int, int, int]) -> Field:
    first, _, step = indices
    return Field(field.size, field.jump * step, field.start + first * field.jump)
