"""Recipes: named settings as YAML files, in this folder or anywhere."""

from pathlib import Path
from typing import Any

from cifar10_accel.errors import SettingsError, did_you_mean
from cifar10_accel.files import read_yaml

RECIPES_DIR = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the values of a recipe, given by name or as a YAML file; `SettingsError` if there is no such recipe."""
    return read_yaml(recipe_path(recipe))


def recipe_path(recipe: str) -> Path:
    """Return the YAML file of a recipe's name or path; `SettingsError` if there is none."""
    named = RECIPES_DIR / f"{recipe}.yaml"
    if named.is_file():
        return named
    if Path(recipe).suffix in (".yaml", ".yml"):
        return Path(recipe).expanduser()
    hint = did_you_mean(recipe, ["auto", *recipe_names()])
    raise SettingsError(
        f"recipe: no recipe {recipe!r}{hint}; there are auto, {', '.join(recipe_names())}, or a .yaml file"
    )
