"""The command that repeats a run, for everything that is written for other people: model card, report, best.yaml."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cifar10_accel.component_names import OBJECT_PREFIX
from cifar10_accel.components import is_import_path
from cifar10_accel.recipes import read_recipe, recipe_names
from cifar10_accel.settings import OF_BUILT_IN, Settings, TrackingSettings
from cifar10_accel.subprocesses import settings_to_flags

# Settings of the machine that a run was on, which another machine has others of.
OF_THE_PLACE = frozenset(
    {"data_dir", "run_dir", "run_name", "num_workers", "num_threads", "collective_timeout", "time_budget"}
    | set(TrackingSettings.model_fields)
)
FOLDER = "FOLDER"  # stands for the data set of the person who repeats the run


@dataclass(frozen=True)
class Reproduction:
    """The command of a run, and one sentence for each thing that it needs besides this package."""

    command: str
    needs: tuple[str, ...]


def reproduction(settings: Settings, environment: Mapping[str, Any]) -> Reproduction:
    """Return the command that gives a run's result again.

    It has every setting that differs from today's recipe, so it does not matter that recipes change. A recipe that is
    a file of the user's is written out against a recipe of the package.

    Args:
        settings: The settings of the run.
        environment: Its environment.json.
    """
    recipe, flags = recipe_and_flags(settings)
    if settings.dataset == "folder":
        flags["data_dir"] = FOLDER
    words = [*launch_words(environment), *settings_to_flags({"recipe": recipe} | flags), *thread_flags(environment)]
    return Reproduction(shlex.join(words), tuple(_needs(settings)))


def recipe_and_flags(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Return a recipe of the package, and the settings that differ from it, as plain values."""
    named = [name for name in recipe_names() if name == settings.recipe]
    found = {name: _differences(settings, name) for name in named or recipe_names()}
    nearest = min(found, key=lambda name: len(found[name]))
    return nearest, found[nearest]


def launch_words(environment: Mapping[str, Any]) -> list[str]:
    """Return the words that start a training on the run's number of processes, on which batch norm depends."""
    processes = environment.get("processes", 1)
    if processes == 1:
        return ["cifar10-accel", "train"]
    return ["torchrun", "--standalone", "--nproc_per_node", str(processes), "-m", "cifar10_accel.train"]


def thread_flags(environment: Mapping[str, Any]) -> list[str]:
    """Return the flag that fixes the number of threads, on which the last bits depend on a CPU."""
    if environment.get("device") != "cpu" or "threads" not in environment:
        return []
    return settings_to_flags({"num_threads": environment["threads"]})


def _differences(settings: Settings, recipe: str) -> dict[str, Any]:
    values = settings.model_dump(mode="json", exclude=set(settings.unused() | OF_THE_PLACE | {"recipe"}))
    base = Settings.stored({"recipe": recipe} | read_recipe(recipe)).model_dump(mode="json")
    # What is given for a component that is not built in is not read from a recipe.
    own = [names for setting, names in OF_BUILT_IN.items() if is_import_path(getattr(settings, setting))]
    always = frozenset().union(*own) & values.keys()
    differing = {name: value for name, value in values.items() if value != base[name] or name in always}
    if "epochs" in differing and "peak_epoch" in values:  # which a recipe scales with the number of epochs
        differing["peak_epoch"] = values["peak_epoch"]
    return differing


def _needs(settings: Settings) -> list[str]:
    needs = []
    if settings.dataset == "folder":
        needs.append(f"{FOLDER} is the folder of the images: train/ and test/, and in them a folder for each class.")
    if settings.init_from is not None:
        needs.append(f"{settings.init_from} is the file or run whose weights it started from.")
    given = settings.model_dump(mode="json", exclude=set(TrackingSettings.model_fields))
    names = [name for value in given.values() for name in (value if isinstance(value, list) else [value])]
    for name in dict.fromkeys(name for name in names if is_import_path(name)):
        if name.startswith(OBJECT_PREFIX):
            shown = name.removeprefix(OBJECT_PREFIX)
            needs.append(f"{shown} was a Python object: give it to fit() again; no command names it.")
        elif not name.startswith("timm:"):
            needs.append(f"{name.partition(':')[0]} is code of the author's, which Python must find.")
    return list(dict.fromkeys(needs))  # two parts may be in one module
