"""The command of a run gives its settings back, whatever recipe, file or environment they came from."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from cifar10_accel.cli import main
from cifar10_accel.runs.reproduce import OF_THE_PLACE, reproduction
from cifar10_accel.settings import Settings

CPU = {"device": "cpu", "threads": 3, "processes": 1}


def settings_of(command: str) -> Settings:
    """Return the settings that the training of a command line has."""
    words = shlex.split(command)
    arguments = words[2:] if words[0] == "cifar10-accel" else words[words.index("cifar10_accel.train") + 1 :]
    given = main.commands["train"].make_context("train", arguments).params
    return Settings(**{name: value for name, value in given.items() if "__" not in name and value is not None})


def decisive(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=set(OF_THE_PLACE | settings.unused() | {"recipe"}))


CASES: dict[str, dict[str, Any]] = {
    "flags of every kind": {
        "recipe": "resnet9",
        "width": 8,
        "epochs": 2,
        "peak_epoch": 0.5,
        "max_steps": 120,
        "nesterov": False,
        "whitening": True,
        "augment": "none",
        "cutmix_alpha": 1.0,
        "max_lr": 1e-05,
        "seed": 7,
        "tta": "flip",
        "precision": "no",
        "dataset": "cifar10",
    },
    "fewer epochs of a recipe": {"recipe": "resnet9", "epochs": 3},
    "another peak": {"recipe": "resnet9", "peak_epoch": 9},
    "cpu": {"recipe": "cpu"},
    "own model": {
        "recipe": "smoke",
        "model": "own.models:Tiny",
        "model_args": {"eps": 1e-8, "name": "it's", "bias": None, "deep": True},
        "width": 8,
    },
    "own everything": {
        "recipe": "resnet9",
        "model": "own:Net",
        "dataset": "own:load",
        "optimizer": "torch.optim:RMSprop",
        "optimizer_args": {"alpha": 0.9},
        "loss": "own:loss",
        "schedule": "own:curve",
        "augment": ("flip", "own:blur"),
        "callbacks": ("own:Watch",),
    },
}


@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_the_command_gives_the_same_settings(given: dict[str, Any]) -> None:
    settings = Settings(**given)
    stored = Settings.stored(yaml.safe_load(settings.to_yaml()) | {"data_dir": "/elsewhere"})
    for run in (settings, stored):
        command = reproduction(run, CPU).command
        assert decisive(settings_of(command)) == decisive(settings)
        assert settings_of(command).fingerprint() == settings.fingerprint()
        assert "/elsewhere" not in command
        assert command.endswith(" --num-threads=3")


def test_what_the_environment_set_is_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_ACCEL_MAX_LR", "0.3")
    settings = Settings(recipe="smoke")
    command = reproduction(settings, CPU).command
    monkeypatch.delenv("CIFAR10_ACCEL_MAX_LR")
    assert settings_of(command).max_lr == 0.3
    assert "--max-lr=0.3" in shlex.split(command)


def test_a_recipe_file_is_written_out(tmp_path: Path) -> None:
    """Its file is not there for others; so are its values, against the recipe of the package that is nearest."""
    file = tmp_path / "my best.yaml"
    file.write_text("model: airbench94\nepochs: 4\npeak_epoch: 1\n")
    settings = Settings(recipe=str(file))
    command = reproduction(settings, CPU).command
    assert "best.yaml" not in command
    assert decisive(settings_of(command)) == decisive(settings)
    like_cpu = tmp_path / "cpu_longer.yaml"
    like_cpu.write_text(yaml.safe_dump({**decisive(Settings(recipe="cpu")), "epochs": 20}))
    assert shlex.split(reproduction(Settings(recipe=str(like_cpu)), {}).command) == [
        "cifar10-accel",
        "train",
        "--recipe=cpu",
        "--epochs=20",
        "--precision=no",
        "--peak-epoch=0",
    ]


def test_processes_are_part_of_the_command() -> None:
    settings = Settings(recipe="smoke")
    command = reproduction(settings, {"device": "NVIDIA H100", "threads": 8, "processes": 4}).command
    assert command == "torchrun --standalone --nproc_per_node 4 -m cifar10_accel.train --recipe=smoke --precision=no"
    assert settings_of(command) == settings


def test_what_a_command_cannot_name_is_said() -> None:
    folder = reproduction(Settings(recipe="smoke", dataset="folder", data_dir=Path("/home/me/birds")), CPU)
    assert "--data-dir=FOLDER" in folder.command
    assert "/home/me" not in folder.command
    assert folder.needs[0].startswith("FOLDER is the folder of the images")
    own = reproduction(Settings(recipe="smoke", model="own.models:Tiny"), CPU)
    assert own.needs == ("own.models is code of the author's, which Python must find.",)
    both = reproduction(Settings(recipe="smoke", model="own.models:Tiny", dataset="own.models:load"), CPU)
    assert both.needs == own.needs
    assert reproduction(Settings(recipe="smoke", model="timm:resnet18"), CPU).needs == ()
    objects = reproduction(Settings(recipe="smoke", model="object:Tiny@123456"), CPU)
    assert objects.needs == ("Tiny@123456 was a Python object: give it to fit() again; no command names it.",)
