"""Translation of what earlier versions of the package wrote into run folders."""

import json
import logging
from pathlib import Path
from typing import Any

from cifar10_accel.errors import FORMER_NAMES
from cifar10_accel.settings import Settings
from cifar10_accel.settings.sources import VERSION, VERSION_KEY

logger = logging.getLogger(__name__)

# Settings in settings.yaml some of whose values have been renamed.
RENAMED_SETTINGS = ("model", "recipe")
# Keys of a checkpoint's training.pt, up to format version 1.
RENAMED_TRAINING_KEYS = {"since_line": "metrics_since_log", "since_epoch": "epoch_metrics", "recorded": "dynamics"}


def translate_settings(values: dict[str, Any], *, source: Path) -> dict[str, Any]:
    """Return the settings of a settings.yaml, of this or an earlier version, under their present names.

    Settings that have been removed since are left out with a warning that names `source`, the file.
    """
    values = dict(values)
    version = values.pop(VERSION_KEY, 1)
    if version == 1:
        values = _translate_version_1(values)
    if "precision" in values and values["precision"] is None:  # as launched, which only environment.json says
        values["precision"] = _trained_precision(source.with_name("environment.json"))
    if version < VERSION and (removed := values.keys() - Settings.model_fields.keys()):
        names = ", ".join(sorted(removed))
        logger.warning("%s: written by an earlier version; these settings are gone since: %s", source, names)
        values = {name: value for name, value in values.items() if name not in removed}
    return values


def _translate_version_1(values: dict[str, Any]) -> dict[str, Any]:
    renamed = {name: values[name] for name in RENAMED_SETTINGS if values.get(name) in FORMER_NAMES}
    values |= {name: FORMER_NAMES[value] for name, value in renamed.items()}
    if isinstance(values.get("augment"), list):  # was applied in this order, whatever the order in the settings
        values["augment"] = [name for name in ("crop", "flip", "cutout") if name in values["augment"]]
    return values


def _trained_precision(environment: Path) -> str:
    """Return the precision that an environment.json says was in effect; float32, the former default, without one."""
    try:
        recorded = str(json.loads(environment.read_text())["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        return "no"
    return "no" if recorded == "fp32" else recorded


def translate_training(training: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a training.pt of format version 1 under the present keys."""
    renamed = {RENAMED_TRAINING_KEYS.get(key, key): value for key, value in training.items()}
    return {"dynamics": None} | renamed  # the first checkpoints have none


def translate_weight_name(name: str) -> str:
    """Return the present name of a weight in a checkpoint of format version 1, whose models had no backbone module."""
    if name == "n_averaged" or name.startswith("module."):  # averaged weights: torch's AveragedModel
        prefix, dot, inner = name.partition(".")
        return f"{prefix}{dot}{translate_weight_name(inner)}" if inner else name
    part, _, rest = name.partition(".")
    if part in ("stem", "prep"):
        return f"stem.{rest}"
    return name if part == "head" else f"backbone.{name}"
