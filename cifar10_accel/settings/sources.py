"""Where settings come from besides keywords and flags: recipes, and environment variables under a prefix."""

import os
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from cifar10_accel.components import is_import_path
from cifar10_accel.errors import SettingsError, why_no_setting
from cifar10_accel.recipes import read_recipe
from cifar10_accel.settings.section import merge_dotted

ENV_PREFIX = "CIFAR10_ACCEL_"
VERSION_KEY, VERSION = "settings_version", 2  # in settings.yaml; files of earlier versions have none


class RecipeSource(PydanticBaseSettingsSource):
    """The values of the recipe that the stronger sources name; `auto` has none until it is resolved.

    Where a stronger source names a component by its import path, what the recipe says about its built-in one is left
    out: the width of resnet9 is not that of another model.
    """

    def __init__(self, settings_cls: type[BaseSettings], *, of_built_in: Mapping[str, Collection[str]]) -> None:
        super().__init__(settings_cls)
        self._of_built_in = of_built_in

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not used: pydantic-settings requires it, and `__call__` returns all values at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Return the recipe's values."""
        recipe = str(self.current_state.get("recipe", "auto"))
        if recipe == "auto":
            return {}
        values = self._with_scaled_peak(merge_dotted(read_recipe(recipe)))
        if values.pop(VERSION_KEY, None) is not None:  # a run's settings.yaml, of which the budget chose the epochs
            values.pop("time_budget", None)
        for setting, names in self._of_built_in.items():
            if is_import_path(self.current_state.get(setting)):
                left_out = {*names, setting, f"{setting}_args"}
                values = {name: value for name, value in values.items() if name not in left_out}
        return values

    def _with_scaled_peak(self, values: dict[str, Any]) -> dict[str, Any]:
        """Keep the LR peak at the same share of the run where only the number of epochs is given."""
        if "epochs" not in self.current_state or "peak_epoch" in self.current_state:
            return values
        fields = self.settings_cls.model_fields
        epochs, peak = (values.get(name, fields[name].default) for name in ("epochs", "peak_epoch"))
        try:
            return values | {"peak_epoch": peak * float(self.current_state["epochs"]) / epochs}
        except (TypeError, ValueError, ZeroDivisionError):  # one of them is no number: validation says so
            return values


class WandbVariables(PydanticBaseSettingsSource):
    """The project and entity that W&B's own environment variables name; the weakest source above the defaults."""

    NAMES: ClassVar[dict[str, str]] = {"wandb_project": "WANDB_PROJECT", "wandb_entity": "WANDB_ENTITY"}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not used: pydantic-settings requires it, and `__call__` returns all values at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Return the values of the variables that are set."""
        return {name: os.environ[variable] for name, variable in self.NAMES.items() if os.environ.get(variable)}


def given_by_environment(names: Collection[str]) -> frozenset[str]:
    """Return the settings that environment variables give."""
    return frozenset(name for name in names if os.environ.get(f"{ENV_PREFIX}{name.upper()}"))


def refuse_unknown_environment(names: Collection[str]) -> None:
    """Raise `SettingsError` for an environment variable that has the prefix and names no setting."""
    for variable in os.environ:
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and name not in names:
            hint = why_no_setting(name, list(names))
            raise SettingsError(f"{variable}: no such setting{hint}; unset the variable or correct its name")
