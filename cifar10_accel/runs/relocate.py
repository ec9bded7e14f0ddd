"""Reading a run that may have moved: what is said now wins over the settings of the place where it was trained.

Nothing here downloads anything.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar10_accel.data.cifar_files import official_files
from cifar10_accel.errors import InputError
from cifar10_accel.runs.reproduce import OF_THE_PLACE
from cifar10_accel.settings import DataSettings, Settings
from cifar10_accel.settings.sources import ENV_PREFIX
from cifar10_accel.subprocesses import num_cores

SAID_NOW = OF_THE_PLACE | {"precision"}


def settings_here(stored: Settings, given: Mapping[str, Any]) -> Settings:
    """Return the settings that a stored run is read with, here.

    Settings of the place come from (first wins) the flags, the environment, the run. Everything else, which makes the
    run what it was, comes from the flags and the run alone. Weights come from the checkpoint, so nothing is loaded that
    they were initialised from.

    Args:
        stored: The settings in the run's folder.
        given: Flags of the command, those without a value left out.

    Raises:
        SettingsError: A value is invalid.
    """
    variables = {name.upper(): value for name, value in os.environ.items() if value}
    keys = {name: f"{ENV_PREFIX}{name}".upper() for name in SAID_NOW}
    said: dict[str, Any] = {name: variables[key] for name, key in keys.items() if key in variables} | dict(given)
    values = stored.model_dump(mode="json", exclude=set(stored.unused())) | {"init_from": None, "pretrained": False}
    if "num_threads" not in said and (stored.num_threads or 0) > num_cores():
        values["num_threads"] = None  # of a larger machine
    return Settings.stored(values | said)


def data_dir_here(stored: Settings, given: Path | None) -> Path:
    """Return the folder of a stored run's data set: as given now, else by the environment, else as in the run."""
    return settings_here(stored, {} if given is None else {"data_dir": str(given)}).data_dir


def require_data(settings: DataSettings) -> None:
    """Raise `InputError` if loading the data set would first download it."""
    files = official_files(settings.dataset)
    if files is not None and files.locate(settings.data_dir) is None:
        raise InputError(
            f"there is no {files.title} in {settings.data_dir}; give --data-dir where it is, or get it with "
            f"`{files.fetch_command} --data-dir {settings.data_dir}`"
        )
