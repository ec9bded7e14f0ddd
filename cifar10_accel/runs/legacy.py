"""Translation of what earlier versions of the package wrote into run folders."""

from typing import Any

from cifar10_accel.errors import FORMER_NAMES

# Settings in settings.yaml some of whose values have been renamed.
RENAMED_SETTINGS = ("model", "recipe")
# Keys of a checkpoint's training.pt, up to format version 1.
RENAMED_TRAINING_KEYS = {"since_line": "metrics_since_log", "since_epoch": "epoch_metrics", "recorded": "dynamics"}


def translate_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a settings.yaml under their present names."""
    renamed = {name: values[name] for name in RENAMED_SETTINGS if values.get(name) in FORMER_NAMES}
    return values | {name: FORMER_NAMES[value] for name, value in renamed.items()}


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
