"""All settings of a run, their sources, and the checks of one against another."""

import hashlib
from typing import Any, ClassVar, Self

import yaml
from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cifar10_accel.components import is_import_path
from cifar10_accel.errors import SettingsError
from cifar10_accel.formatting import setting_error_line
from cifar10_accel.settings.data import DataSettings
from cifar10_accel.settings.model import FineTuningSettings, ModelSettings
from cifar10_accel.settings.optimization import OptimSettings, ScheduleSettings
from cifar10_accel.settings.run import CallbackSettings, RunSettings, TrackingSettings
from cifar10_accel.settings.section import merge_dotted
from cifar10_accel.settings.sources import (
    ENV_PREFIX,
    VERSION,
    VERSION_KEY,
    RecipeSource,
    WandbVariables,
    given_by_environment,
    refuse_unknown_environment,
)

# Settings that describe built-in components only, by the setting that names the component.
OF_BUILT_IN: dict[str, frozenset[str]] = {
    "model": frozenset(ModelSettings.model_fields) - {"model", "model_args"},
    "optimizer": frozenset({"momentum", "nesterov", "conv_lr_factor", "conv_momentum"}),
    "loss": frozenset({"label_smoothing", "class_weights"}),
    "schedule": frozenset({"peak_epoch", "div_factor", "final_div_factor", "anneal", "decay_fraction"}),
}


class Settings(
    TrackingSettings,
    CallbackSettings,
    RunSettings,
    ScheduleSettings,
    OptimSettings,
    FineTuningSettings,
    ModelSettings,
    DataSettings,
    BaseSettings,
):
    """All settings of a run, validated; immutable. `Settings(max_lr=0.2)` is all Python code needs."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    recipe: str = Field(
        "auto",
        description="name of a recipe, or a YAML file of settings; auto: resnet9, or cpu without an accelerator if the "
        "model is built in",
    )

    # Two runs that differ only in these end with the same weights.
    DOES_NOT_AFFECT_WEIGHTS: ClassVar[frozenset[str]] = frozenset(
        {
            "recipe",
            "data_dir",
            "augment_backend",
            "num_workers",
            "time_budget",
            "cuda_graph",
            "max_steps",
            "eval_batch_size",
            "eval_every",
            "tta",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "num_threads",
            "collective_timeout",
            "run_dir",
            "run_name",
        }
        | set(TrackingSettings.model_fields)
    )

    IS_STORED: ClassVar[bool] = False  # read from a file: keywords are the only source

    _given: frozenset[str] = PrivateAttr(frozenset())  # by keyword, flag or environment: not by the recipe
    _resolves_auto: bool = PrivateAttr(False)  # the recipe is the one that `auto` stands for

    def __init__(self, **values: Any) -> None:
        try:
            values = merge_dotted(values)
            super().__init__(**values)
            self._given = frozenset(values) | given_by_environment(type(self).model_fields)
        except ValidationError as error:
            raise SettingsError(
                "\n".join(setting_error_line(details, type(self).model_fields) for details in error.errors())
            ) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        if cls.IS_STORED:
            return (init_settings,)
        refuse_unknown_environment(settings_cls.model_fields)
        recipe = RecipeSource(settings_cls, of_built_in=OF_BUILT_IN)
        return init_settings, env_settings, recipe, WandbVariables(settings_cls)

    def resolve_recipe(self, *, on_cpu: bool) -> Self:
        """Return the settings with the recipe that `auto` stands for; unchanged if they name a recipe.

        Keywords, flags and environment variables are kept and win over the recipe's values. The LRs of `cpu` are those
        of a model with fixed norm scales and scaled logits: other models do not learn with them.
        """
        if self.recipe != "auto":
            return self
        resolved = self.replace(recipe="cpu" if on_cpu and not is_import_path(self.model) else "resnet9")
        resolved._resolves_auto = True
        return resolved

    def resolve(self) -> Self:
        """Return the settings with the recipe that `auto` stands for on this machine."""
        import torch

        return self.resolve_recipe(on_cpu=not torch.accelerator.is_available())

    def replace(self, **values: Any) -> Self:
        """Return the settings that result if these values are given too; the recipe is read again around them."""
        return type(self)(**{name: getattr(self, name) for name in self._given} | values)

    @property
    def has_open_length(self) -> bool:
        """True if the number of epochs is the time budget's to choose: it is neither given nor that of a stored run."""
        return self.time_budget is not None and "epochs" not in self._given

    @property
    def has_open_recipe(self) -> bool:
        """True if the recipe, too, is the time budget's to choose: it is `auto`, or what `auto` stands for."""
        return self.has_open_length and (self._resolves_auto or self.recipe == "auto")

    def with_length(self, *, recipe: str, epochs: int) -> Self:
        """Return the settings with a recipe and a number of epochs, and with what follows from the two.

        The LR peak moves in proportion; a recipe that evaluates at its end alone still does. Settings that were
        resolved stay so.
        """
        own = self.replace(recipe=recipe)
        evaluates_at_end = own.eval_every == own.epochs and "eval_every" not in self._given
        changed = own.replace(epochs=epochs, **{"eval_every": epochs} if evaluates_at_end else {})
        return changed.model_copy(update={"dataset": self.dataset, "precision": self.precision})

    def unused(self) -> frozenset[str]:
        """Return the settings of built-in components that play no part, because a component is not built in."""
        own = (names for setting, names in OF_BUILT_IN.items() if is_import_path(getattr(self, setting)))
        return frozenset().union(*own) - self.model_fields_set

    def weight_affecting(self) -> dict[str, Any]:
        """Return the settings that decide the final weights, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.DOES_NOT_AFFECT_WEIGHTS | self.unused()))

    def fingerprint(self) -> str:
        """Return six hex digits that identify the settings that decide the final weights.

        Settings at their default do not count, so a version with more settings gives the same fingerprint.
        """
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        decisive = {name: value for name, value in self.weight_affecting().items() if value != _plain(defaults[name])}
        return hashlib.sha256(yaml.safe_dump(decisive).encode()).hexdigest()[:6]

    def to_yaml(self) -> str:
        """Return every setting that plays a part as YAML, grouped as here; `stored` gives the same settings back."""
        values = self.model_dump(mode="json", exclude=set(self.unused()))
        return yaml.safe_dump({VERSION_KEY: VERSION} | values, sort_keys=False)

    @staticmethod
    def stored(values: dict[str, Any]) -> "Settings":
        """Return settings that were written to a file: neither the environment nor today's recipes change them.

        A setting that is missing has its default.
        """
        return _StoredSettings(**{name: value for name, value in values.items() if name != VERSION_KEY})

    def __str__(self) -> str:
        """Return the settings as YAML; `resolve` first shows the recipe that `auto` stands for."""
        return self.to_yaml()

    def __eq__(self, other: object) -> bool:
        """Return whether every value is the same, wherever it came from."""
        return isinstance(other, Settings) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _agree_with_each_other(self) -> Self:
        if is_import_path(self.schedule):
            return self
        peak_is_open = self.recipe == "auto" and "peak_epoch" not in self.model_fields_set  # until it is resolved
        if self.peak_epoch >= self.epochs and not peak_is_open:
            raise ValueError(
                f"peak_epoch: {self.peak_epoch:g} is not before the end of {self.epochs} epochs; "
                f"give --peak-epoch a value below {self.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _have_users_for_arguments(self) -> Self:
        for setting, arguments in (("model", self.model_args), ("optimizer", self.optimizer_args)):
            if arguments and not is_import_path(getattr(self, setting)):
                raise ValueError(
                    f"{setting}_args: {getattr(self, setting)!r} is built in and has settings of its own; "
                    f"leave {setting}_args out, or give --{setting} an import path"
                )
        if self.callback_args and not self.callbacks:
            raise ValueError("callback_args: there are no callbacks that could take them; give --callbacks too")
        return self

    @model_validator(mode="after")
    def _divide_evenly(self) -> Self:
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size: {self.batch_size} cannot be split into {self.grad_accum_steps} equal micro-batches; "
                "give a multiple of grad_accum_steps"
            )
        return self


class _StoredSettings(Settings):
    """Settings of which every value is given or the default."""

    IS_STORED = True


def _plain(value: Any) -> Any:
    """Return a default as `model_dump` in JSON mode gives it."""
    return list(value) if isinstance(value, tuple) else value
