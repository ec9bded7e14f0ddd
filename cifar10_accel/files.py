"""Files that are replaced whole or not at all, arrays in npz files, and YAML files of settings."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from cifar10_accel.errors import InputError, SettingsError

if TYPE_CHECKING:  # settings are read through here, and importing NumPy would delay every --help
    import numpy.typing as npt

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)

Arrays = Mapping[str, "npt.NDArray[Any]"]


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Context of a file that takes the place of `path` when it is complete: synced, then renamed.

    A reader, or a process killed at any moment, finds the old file or the new one, never a part.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Replace a file by UTF-8 text, atomically (`replace_file`)."""
    with replace_file(path) as file:
        file.write(text.encode())


def use_default_permissions(path: Path) -> None:
    """Give a file the permissions that new files have; safetensors creates files that only their owner can read."""
    path.chmod(0o666 & ~_UMASK)


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Replace an npz file; equal arrays give equal files."""
    import numpy as np

    with replace_file(path) as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]


def load_arrays(path: Path, names: Iterable[str], *, what: str, advice: str) -> Arrays:
    """Return the arrays of these names in an npz file, which anybody may have written: no code is run.

    Args:
        path: The npz file.
        names: The arrays to read.
        what: What the file should be, for the error message.
        advice: What to do if it is not.

    Raises:
        InputError: The file cannot be read, or an array is missing.
    """
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in names}  # a foreign zip gives bytes
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
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); give a UTF-8 YAML file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected lines of `name: value`, found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice; the standard silently keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice")
        return super().construct_mapping(node, deep=deep)
