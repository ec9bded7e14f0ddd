"""The names that settings have for Python objects: a built-in name, an import path, or `object:` and a digest."""

import copyreg
import dis
import functools
import hashlib
import inspect
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

OBJECT_PREFIX = "object:"
CONSTANTS = (str, bytes, int, float, complex, type(None), PurePath)
PLAIN = (*CONSTANTS, Mapping, list, tuple, set, frozenset, functools.partial)
CODE = (FunctionType, type)


def name_of(component: Any) -> str:
    """Return the name that the settings have for an object.

    What can be imported is named by its import path. Anything else gets a digest of all that makes it different from
    other objects: source, defaults, enclosed values, attributes, parameters, arrays. What a callback has in its
    `state_dict` changes while it runs and is left out.
    """
    if isinstance(component, str):
        return component
    path = _import_path(component)
    if path:
        return path
    shown = getattr(component, "__qualname__", None) or type(component).__qualname__
    return f"{OBJECT_PREFIX}{shown.replace('<', '').replace('>', '')}@{_digest(component)}"


def _import_path(component: Any) -> str | None:
    """Return the path that leads to a class or function of an imported module; None for any other object."""
    module, qualified_name = (getattr(component, name, None) for name in ("__module__", "__qualname__"))
    if not (module and qualified_name) or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for attribute in qualified_name.split("."):
        found = getattr(found, attribute, None)
    return f"{module}:{qualified_name}" if found is component else None


def _digest(component: Any) -> str:
    sha = hashlib.sha256()
    for part in _parts(component, {}):
        sha.update(part)
    return sha.hexdigest()[:6]


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Yield what distinguishes an object from others, as bytes.

    Args:
        value: Any object.
        seen: Objects that are parts already, by identity; they may refer to one another.
    """
    if isinstance(value, CONSTANTS):
        yield f"{value!r};".encode()
        return
    if isinstance(value, ModuleType | logging.Logger):  # both lead to everything else in the process
        yield f"{value.__name__ if isinstance(value, ModuleType) else value.name};".encode()
        return
    if type(value).__name__ == "RemovableHandle":  # of a hook of torch, numbered in the order in which they were made
        return
    path = _import_path(value)
    if path or id(value) in seen:
        yield f"{path or 'seen'};".encode()
        return
    seen[id(value)] = value
    yield f"{type(value).__qualname__}:".encode()
    if inspect.isclass(value):
        yield from _class_parts(value, seen)
    elif hasattr(value, "digest_parts"):  # a Dataset
        yield from value.digest_parts()
    elif hasattr(value, "named_modules"):  # a model
        yield from _model_parts(value, seen)
    elif hasattr(value, "dtype") and (hasattr(value, "tobytes") or hasattr(value, "untyped_storage")):
        yield from _array_parts(value)
    elif isinstance(value, Mapping):
        for key, item in sorted(value.items(), key=lambda pair: str(pair[0])):
            yield from (*_parts(key, seen), *_parts(item, seen))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(b"".join(_parts(item, seen)) for item in value)
    elif isinstance(value, functools.partial):
        yield from _parts([value.func, value.args, value.keywords], seen)
    elif isinstance(value, MethodType):
        yield from _parts([value.__func__, value.__self__], seen)
    elif isinstance(value, FunctionType):
        yield from _function_parts(value, seen)
    else:
        yield from _object_parts(value, seen)
    yield b";"


def _class_parts(kind: type, seen: dict[int, Any]) -> Iterator[bytes]:
    yield _source(kind)
    yield from _parts(kind.__bases__, seen)
    for name, value in vars(kind).items():
        member = getattr(value, "__func__", None) or getattr(value, "fget", None) or value  # of methods, properties
        if isinstance(member, FunctionType):
            yield from _function_parts(member, seen)
        elif _is_plain_value(member) and not name.startswith("__"):
            yield from (name.encode(), *_parts(member, seen))


def _function_parts(function: FunctionType, seen: dict[int, Any]) -> Iterator[bytes]:
    """Yield the source of a function and the values that it uses: defaults, enclosed variables, global values."""
    yield _source(function)
    enclosed, found = variables_of(function)
    of_module = {name: item for name, item in found.items() if _is_plain_value(item) or isinstance(item, CODE)}
    yield from _parts([function.__defaults__, function.__kwdefaults__, enclosed, of_module], seen)


def variables_of(function: FunctionType) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the enclosed and the global variables that a function, or a function inside it, uses, by name.

    An enclosed variable that has no value yet is left out; a global name without one is None.
    """
    enclosed = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it has no value yet
            enclosed[name] = cell.cell_contents
    return enclosed, {name: function.__globals__.get(name) for name in _global_names(function.__code__)}


def _global_names(code: CodeType) -> set[str]:
    """Return the names of the global variables that a function, and the functions inside it, read."""
    inner = [_global_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*inner)


def _is_plain_value(value: Any) -> bool:
    """Return whether a value is data: other objects of a module may change without being used to compute anything."""
    if isinstance(value, PLAIN):
        return True
    return not inspect.isclass(value) and (hasattr(value, "dtype") or hasattr(value, "named_modules"))


def _model_parts(model: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Yield the parameters and buffers of an nn.Module, and class and attributes of each of its modules."""
    from torch import nn  # which has been imported to make the model

    of_every_module = vars(nn.Module()).keys()  # whether it is in training mode, for example
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield from (name.encode(), *_array_parts(tensor))
    for name, module in model.named_modules():
        own = {key: item for key, item in vars(module).items() if key not in of_every_module}
        yield from (name.encode(), *_parts([type(module), own], seen))


def _array_parts(array: Any) -> Iterator[bytes]:
    """Yield type, shape and bytes of a tensor, or of a NumPy array.

    A parameter of a lazy module has none of these before its first forward pass: only its class is yielded.
    """
    if hasattr(array, "materialize"):
        yield type(array).__name__.encode()
        return
    yield f"{array.dtype} {tuple(array.shape)};".encode()
    if hasattr(array, "untyped_storage"):
        import torch

        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    yield array.tobytes()


def _object_parts(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Yield class and attributes of any other object, and its text, which has those of compiled classes."""
    slots = copyreg._slotnames(type(value))  # type: ignore[attr-defined]  # as pickle finds them
    attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    changing = _keys_of_state(value)
    yield from _parts([type(value), {key: item for key, item in attributes.items() if key not in changing}], seen)
    if not attributes:
        yield re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)).encode()


def _keys_of_state(value: Any) -> set[Any]:
    """Return the keys of an object's `state_dict`; none if it has none, or none before the training starts."""
    try:
        return set(value.state_dict())
    except Exception:  # it may need what its `on_fit_start` makes
        return set()


def _source(code: Any) -> bytes:
    """Return the source of a class or function; of a lambda, or if there is none, its byte code too."""
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):  # made by exec, or a class of a notebook, whose methods have their source
        source = ""
    compiled = getattr(code, "__code__", None)
    if compiled is None or (source and compiled.co_name != "<lambda>"):
        return source.encode()
    constants = [constant for constant in compiled.co_consts if isinstance(constant, CONSTANTS)]
    return f"{source}{compiled.co_code!r}{compiled.co_names}{constants}".encode()
