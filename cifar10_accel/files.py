"""Files that are replaced whole or not at all, arrays in npz files, and YAML files of settings."""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

import yaml

from cifar10_accel.errors import InputError, OutOfResourcesError, SettingsError

if TYPE_CHECKING:  # settings are read through here, and importing NumPy would delay every --help
    import numpy.typing as npt

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)

Arrays = Mapping[str, "npt.NDArray[Any]"]


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Context of a file that takes the place of `path` when it is complete: synced, then renamed.

    A reader, or a process killed at any moment, finds the old file or the new one, never a part. Several processes may
    replace the same file at the same time; the last one to end wins.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file by UTF-8 text, atomically (`replace_file`)."""
    with replace_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # file names that are not UTF-8 have surrogates


@contextmanager
def output_of(option: str | None, path: Path) -> Iterator[None]:
    """Context of writing to a place that a user may choose, whose OSError becomes one line.

    Args:
        option: Name of the option that chooses the place, such as `run_dir`; None: there is none.
        path: The file or folder.

    Raises:
        OutOfResourcesError: The disk is full.
        SettingsError: The place cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResourcesError(f"{path}: cannot be written ({reason}); free some disk space") from None
        if option is None:
            raise SettingsError(f"{path}: cannot be written ({reason}); make it writable") from None
        raise SettingsError(
            f"{option}: {path} cannot be written ({reason}); give another --{option.replace('_', '-')}"
        ) from None


def name_as_text(name: str) -> str:
    """Return the name of a file as text that any file and library takes: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def user_path(path: str | Path) -> Path:
    """Return a path that a person gave, with the home folder for `~`.

    Raises:
        ValueError: It is empty, or no path at all.
    """
    if not str(path) or "\0" in str(path):
        raise ValueError("is no path; leave it out, or give one")
    return Path(os.path.expanduser(path))


def recordable_path(path: str | Path) -> Path:
    """Return the path as `user_path` does, if text files and every library can have it.

    Raises:
        ValueError: It is no path, or not UTF-8.
    """
    given = user_path(path)
    if name_as_text(str(given)) != str(given):
        raise ValueError("is not UTF-8, which files that record it need; give another name")
    return given


def use_default_permissions(path: Path) -> None:
    """Give a file the permissions that new files have; safetensors creates files that only their owner can read."""
    path.chmod(0o666 & ~_UMASK)


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Replace an npz file; equal arrays give equal files."""
    import numpy as np

    with replace_file(path) as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]


def load_arrays(path: Path, names: Iterable[str], *, what: str, advice: str, optional: Iterable[str] = ()) -> Arrays:
    """Return the arrays of these names in an npz file, which anybody may have written: no code is run.

    Args:
        path: The npz file.
        names: The arrays to read.
        what: What the file should be, for the error message.
        advice: What to do if it is not.
        optional: More arrays to read, if they are there.

    Raises:
        InputError: The file cannot be read, or an array is missing.
    """
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            present = [*names, *(name for name in optional if name in arrays)]
            return {name: np.asarray(arrays[name]) for name in present}  # a foreign zip gives bytes
    except FileNotFoundError:
        reason = "no such file"
    except Exception as error:  # a damaged zip can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(f"{path}: not readable as {what} ({reason}); {advice}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of settings.

    Raises:
        SettingsError: Names the file and what is wrong with it.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); give a UTF-8 YAML file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected lines of `name: value`, found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


class _Loader(yaml.SafeLoader):
    """YAML of files that people write: a key given twice is refused, and only `true` and `false` are booleans.

    The standard loader silently keeps the last value of a key, and reads `precision: no` as false (YAML 1.1).
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flattened = set[int]()  # identities of mappings

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what `<<` refers to; the mapping's own keys win, then those of the first of several mappings.

        Called for every mapping. PyYAML's own method lets some keys of the others win.
        """
        if id(node) in self._flattened:
            return
        self._flattened.add(id(node))
        own, sources = dict[str, tuple[yaml.Node, yaml.Node]](), list[yaml.Node]()
        for key, value in node.value:
            name = "<<" if key.tag == _MERGE else repr(self.construct_object(key, deep=True))
            if name in own or (name == "<<" and sources):
                raise yaml.YAMLError(f"{name} is given twice")
            if name == "<<":
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            else:
                own[name] = (key, value)
        merged = dict[str, tuple[yaml.Node, yaml.Node]]()
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                raise yaml.YAMLError("<< takes a mapping, or a list of mappings")
            self.flatten_mapping(source)
            merged |= {repr(self.construct_object(key, deep=True)): (key, value) for key, value in source.value}
        node.value = list((merged | own).values())


_MERGE, _BOOLEAN = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
