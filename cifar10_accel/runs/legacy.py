"""Translation of what earlier versions of the package wrote into run folders."""

from typing import Any

# Values of settings in settings.yaml that have been renamed.
RENAMED_VALUES = {
    "model": {"custom_resnet": "resnet9", "speednet": "airbench94", "speednet_deep": "airbench96"},
    "recipe": {"resnet24": "resnet9", "resnet24_plus": "resnet9_plus", "original24": "resnet9_original"},
}
# Keys of a checkpoint's training.pt, up to format version 1.
RENAMED_TRAINING_KEYS = {"since_line": "metrics_since_log", "since_epoch": "epoch_metrics", "recorded": "dynamics"}


def translate_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a settings.yaml under their present names."""
    return {
        name: RENAMED_VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        for name, value in values.items()
    }


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
