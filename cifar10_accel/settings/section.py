"""Base of the sections of the settings: checks of built-in names, and values given as text."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from cifar10_accel.components import is_import_path
from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.files import recordable_path

Positive = Annotated[float, Field(gt=0)]
_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER} *h)? *(?:{_NUMBER} *m(?:in)?)? *(?:{_NUMBER} *s?)?", re.IGNORECASE)


def _seconds(value: Any) -> Any:
    """Return the seconds of a text such as 1h, 10m, 1m30s or 90; anything but text is left to other checks."""
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.strip())
    if not found or not any(found.groups()):
        raise ValueError("give a time such as 90s, 10m or 1h; a number alone is seconds")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


Duration = Annotated[float, BeforeValidator(_seconds)]  # in seconds


def built_in(*names: str) -> dict[str, Any]:
    """Return the `json_schema_extra` of a setting that takes one of these names or an import path."""
    return {"built_in": list(names)}


def built_in_names(field: Any) -> list[str]:
    """Return the built-in names of a field made with `built_in`; none for any other field."""
    extra = field.json_schema_extra
    return list(extra["built_in"]) if isinstance(extra, dict) and "built_in" in extra else []


class Section(BaseModel):
    """Base of the sections: immutable, nothing unknown, no nan or inf."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _text_to_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert the text of a flag or variable to what the field takes; refuse a boolean where none is expected."""
        annotation = cls.model_fields[cast(str, info.field_name)].annotation
        kinds = {get_origin(kind) or kind for kind in (annotation, *get_args(annotation))}
        literals = {text for kind in (annotation, *get_args(annotation)) for text in get_args(kind)}
        if isinstance(value, str):
            if tuple in kinds and (type(None) not in kinds or value.lower() not in ("none", "null")):
                if value == "balanced":  # class_weights
                    return value
                return () if value.lower() in ("none", "") else [word.strip() for word in value.split(",")]
            if dict in kinds:
                return _mapping(value)
            if value.lower() in ("none", "null") and type(None) in kinds:
                return None
        if Path in kinds and isinstance(value, str | Path):
            return recordable_path(value)
        if str(value).lower() == "false" and "no" in literals:  # YAML reads `precision: no` as false, in a sweep of W&B
            return "no"
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError("expected a value, not true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _require_known_names(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a name that is neither built in nor an import path."""
        known = built_in_names(cls.model_fields[cast(str, info.field_name)])
        for name in value if isinstance(value, tuple) else (value,):
            if known and not is_import_path(name) and name not in known:
                hint = did_you_mean(name, known)
                raise PydanticCustomError(
                    "unknown_name",
                    "{value} is none of {known}{hint}, nor an import path (package.module:attribute)",
                    {"value": repr(name), "known": ", ".join(known), "hint": hint},
                )
        return value


def merge_dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with `model_args.depth=3` as a key of the mapping `model_args`, as sweeps name it."""
    merged = {name: value for name, value in values.items() if "." not in name}
    for name, value in values.items():
        if "." in name:
            setting, _, key = name.partition(".")
            mapping = merged.get(setting, {})
            try:
                mapping = _mapping(mapping) if isinstance(mapping, str) else dict(mapping)
            except (TypeError, ValueError):
                raise SettingsError(f"{name}: {setting} is {mapping!r}, not a mapping; give one of the two") from None
            merged[setting] = mapping | {key: _parsed(value) if isinstance(value, str) else value}
    return merged


def _mapping(text: str) -> dict[str, Any]:
    """Return the mapping that JSON (or YAML in one line) describes."""
    try:
        value = {} if text.lower() in ("none", "null", "") else _parsed(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ValueError('is not a mapping; give JSON such as {"depth": 3}')
    return value


def _parsed(text: str) -> Any:
    """Return the value that JSON or, if it is none, YAML in one line describes; 1e-5 is a number in JSON alone."""
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)
