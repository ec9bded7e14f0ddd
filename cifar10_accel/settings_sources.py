"""Where settings come from besides keywords and flags: recipes, and environment variables under a prefix."""

import os
from collections.abc import Collection
from typing import Any

from pydantic_settings import PydanticBaseSettingsSource

from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.recipes import read_recipe

ENV_PREFIX = "CIFAR10_ACCEL_"


class RecipeSource(PydanticBaseSettingsSource):
    """The values of the recipe that the stronger sources name; `auto` has none until it is resolved."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not used: pydantic-settings requires it, and `__call__` returns all values at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Return the recipe's values."""
        recipe = str(self.current_state.get("recipe", "auto"))
        if recipe == "auto" or self.current_state.keys() >= self.settings_cls.model_fields.keys():
            return {}  # a run's own settings.yaml has every value, and may outlive the recipe's file
        return self._with_scaled_peak(read_recipe(recipe))

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


def refuse_unknown_environment(names: Collection[str]) -> None:
    """Raise `SettingsError` for an environment variable that has the prefix and names no setting."""
    for variable in os.environ:
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and name not in names:
            hint = did_you_mean(name, list(names))
            raise SettingsError(f"{variable}: no such setting{hint}; unset the variable or correct its name")
