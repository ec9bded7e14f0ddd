"""The recipes: named settings as YAML files, here or anywhere, and how such a file is read."""

from pathlib import Path
from typing import Any

import yaml

from cifar10_accel.errors import SettingsError, did_you_mean

RECIPES_DIR = Path(__file__).parent


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """The values of a recipe, given by its name or as a YAML file; `SettingsError` if there is no such recipe."""
    return read_yaml(recipe_path(recipe))


def recipe_path(recipe: str) -> Path:
    """The YAML file behind a recipe's name or path; `SettingsError` if there is none."""
    named = RECIPES_DIR / f"{recipe}.yaml"
    if named.is_file():
        return named
    if Path(recipe).suffix in (".yaml", ".yml"):
        return Path(recipe)
    hint = did_you_mean(recipe, ["auto", *recipe_names()])
    raise SettingsError(
        f"recipe: no recipe {recipe!r}{hint}; there are auto, {', '.join(recipe_names())}, or a .yaml file"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings; `SettingsError` names the file and the fault."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); give a UTF-8 YAML file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected lines of `name: value`, found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the standard keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice")
        return super().construct_mapping(node, deep=deep)
