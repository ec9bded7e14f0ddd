"""Models, data sets, augmentations, losses, optimizers, schedules, trackers and callbacks that are not built in.

A setting names one by its import path, `package.module:attribute`. Importing it runs its code. Objects that Python code
gives to `fit` get a name here too: their import path where it leads back to them, else `object:` and a digest.
"""

import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from cifar10_accel.component_names import OBJECT_PREFIX
from cifar10_accel.errors import InputError, SettingsError, UserError, did_you_mean

# The settings that hold more arguments of a component, by the setting that names it.
ARGUMENTS = {"model": "model_args", "optimizer": "optimizer_args", "callbacks": "callback_args"}

_objects: dict[str, Any] = {}  # given as objects, by the names that the settings have for them


def is_import_path(name: Any) -> bool:
    """Return whether a setting's value is an import path or the name of an object, not a built-in name."""
    return isinstance(name, str) and ":" in name


def load_component(path: str, *, setting: str) -> Any:
    """Return the object that an import path names.

    Modules are looked for in the current folder first, as `python -m` does.

    Args:
        path: `package.module:attribute`, or a name that `named_objects` gave.
        setting: Name of the setting, for the error message.

    Raises:
        SettingsError: There is no such module or attribute.
        InputError: The module raises when it is imported.
    """
    if path in _objects:
        return _objects[path]
    if path.startswith(OBJECT_PREFIX):
        raise SettingsError(
            f"{setting}: {path.removeprefix(OBJECT_PREFIX)} was given as a Python object; give it again, to fit() or "
            "load_run(), or use an import path"
        )
    module_name, _, attributes = path.partition(":")
    found: Any = _import_module(module_name, setting=setting)
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            hint = did_you_mean(attribute, [name for name in dir(found) if not name.startswith("_")])
            raise SettingsError(
                f"{setting}: {module_name} has no {attribute!r}{hint}; give package.module:attribute"
            ) from None
    return found


@contextmanager
def named_objects(objects: Mapping[str, Any]) -> Iterator[None]:
    """Context in which `load_component` finds these objects by their names."""
    _objects.update(objects)
    try:
        yield
    finally:
        for name in objects:
            _objects.pop(name, None)


def call_component(
    function: Callable[..., Any],
    known: Mapping[str, Any],
    *,
    path: str,
    setting: str,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Call a component with what its signature names.

    Args:
        function: The component.
        known: Values that it gets if its signature names them.
        path: Its import path, for error messages.
        setting: The setting that names it.
        given: Arguments from the user, all of which it must take (`<setting>_args`).

    Raises:
        SettingsError: It does not take a given argument, or needs one that is not given.
        InputError: It raises.
    """
    arguments = arguments_for(function, known, path=path, setting=setting, given=given or {})
    with user_code(path, setting=setting):
        return function(**arguments)


def arguments_for(
    function: Callable[..., Any], known: Mapping[str, Any], *, path: str, setting: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments of `call_component`."""
    parameters, takes_any = parameters_of(function)
    if not takes_any:
        require_taken(given, list(parameters), path=path, setting=setting)
    arguments = {name: known[name] for name in parameters if name in known} | dict(given)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            place = "--image-size" if name == "image_size" else ARGUMENTS.get(setting)
            remedy = f"set {place}, or give it a default" if place else "give it a default"
            raise SettingsError(f"{setting}: {path} needs {name!r}; {remedy}")
    return arguments


def require_taken(given: Iterable[str], names: Sequence[str], *, path: str, setting: str) -> None:
    """Raise `SettingsError` for an argument in `<setting>_args` that is none of a component's."""
    for name in given:
        if name not in names:
            raise SettingsError(
                f"{setting}_args: {path} does not take {name!r}{did_you_mean(name, list(names))}; "
                f"it takes {', '.join(names) or 'nothing'}"
            )


def parameters_of(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the named parameters of a function, and whether it takes any other keyword too."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions of compiled libraries have no signature
        return {}, True
    collecting = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name: parameter for name, parameter in parameters.items() if parameter.kind not in collecting}
    return named, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@contextmanager
def user_code(path: str, *, setting: str) -> Iterator[None]:
    """Context that turns any exception of a component into an `InputError` of one line with the place in its code."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
            raise  # not the component's fault
        raise InputError(f"{setting}: {path} raised {describe_error(error)}") from error


def describe_error(error: BaseException) -> str:
    """Return an exception's type, its message and the innermost line of code outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [(frame.filename, frame.lineno) for frame in frames if not _is_installed(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename:
        own = [(error.filename, error.lineno)]
    message = " ".join(str(getattr(error, "msg", None) or error).split())
    described = f"{type(error).__name__}{f' ({message})' if message else ''}"
    return f"{described} at {_short(own[-1][0])}:{own[-1][1]}" if own else described


def _import_module(name: str, *, setting: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"{setting}: importing {name} raised {describe_error(error)}") from error
        raise SettingsError(
            f"{setting}: there is no module {error.name!r}{did_you_mean(error.name, _siblings(error.name))}; modules "
            f"are looked for in {os.getcwd()} and among the installed packages"
        ) from None
    except UserError:
        raise
    except Exception as error:
        raise InputError(f"{setting}: importing {name} raised {describe_error(error)}") from error


def _siblings(name: str) -> list[str]:
    """Return the modules beside a module that there is not."""
    parent, _, _ = name.rpartition(".")
    paths = list(sys.modules[parent].__path__) if parent in sys.modules else [os.getcwd()]
    return [f"{parent}.{found.name}" if parent else found.name for found in pkgutil.iter_modules(paths)]


def _is_installed(filename: str) -> bool:
    package = os.path.dirname(__file__)
    return "site-packages" in filename or filename.startswith(("<frozen", sys.base_prefix, package))


def _short(filename: str) -> str:
    """Return a file name relative to the current folder where it is in it."""
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative
