"""Every hyperparameter of a run: name, range, default and one sentence. The only source of defaults.

Names are flat, so a flag, a sweep parameter, a W&B config key and a YAML key are the same word; in code they are
grouped in section classes, so that a function can take just the section it needs. A value comes from (first wins): the
keyword or flag, the environment (`CIFAR10_ACCEL_<NAME>`), the recipe, the default here. Anything unknown, out of
range, nan or inf is a `SettingsError`.
"""

from cifar10_accel.settings.data import DataSettings
from cifar10_accel.settings.model import FineTuningSettings, ModelSettings
from cifar10_accel.settings.optimization import OptimSettings, ScheduleSettings
from cifar10_accel.settings.run import CallbackSettings, RunSettings, TrackingSettings
from cifar10_accel.settings.section import built_in_names
from cifar10_accel.settings.settings import OF_BUILT_IN, Settings

__all__ = [
    "OF_BUILT_IN",
    "CallbackSettings",
    "DataSettings",
    "FineTuningSettings",
    "ModelSettings",
    "OptimSettings",
    "RunSettings",
    "ScheduleSettings",
    "Settings",
    "TrackingSettings",
    "built_in_names",
]
