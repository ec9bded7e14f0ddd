"""A run folder that was moved, without or with its data set: what is said now wins, and nothing is downloaded."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.commands.demo import Explainer
from cifar10_accel.data import download
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.runs.relocate import data_dir_here, settings_here
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import num_cores
from cifar10_accel.train import fit

VARIABLE = "CIFAR10_ACCEL_DATA_DIR"
CLASSES = ("owl", "robin", "wren")
GIVEN = TINY | {"dataset": "folder", "val_size": 6, "batch_size": 18}


def write_images(folder: Path, *, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """Write a data set of pictures of noise, each class of its own brightness."""
    random = np.random.default_rng(seed)
    for part, count in (("train", 20), ("test", 6)):
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(80 * number, 80 * number + 90, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `birds` and two runs on it."""
    folder = tmp_path_factory.mktemp("there")
    write_images(folder / "birds")
    for seed in (0, 1):
        fit(Settings(**GIVEN, data_dir=folder / "birds", seed=seed, run_dir=folder / f"run{seed}"))
    return folder


@pytest.fixture
def moved(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in another place: the folder that the runs recorded does not exist, and downloading fails the test."""
    here = tmp_path / "here"
    shutil.copytree(trained, here)
    for run in ("run0", "run1"):
        settings = here / run / "settings.yaml"
        settings.write_text(settings.read_text().replace(str(trained), str(tmp_path / "gone")))
    monkeypatch.setattr(download, "fetch", lambda *args, **options: pytest.fail("it downloads"))
    return here


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def commands(here: Path) -> dict[str, list[object]]:
    return {
        "evaluate": ["evaluate", here / "run0", "--json"],
        "robustness": ["robustness", here / "run0", "--images=3"],
        "export": ["export", here / "run0", "--format=safetensors", f"--out={here / 'out'}"],
        "compare": ["compare", here / "run0", here / "run1", f"--out={here / 'compare.html'}"],
        "report": ["report", here / "run0"],
        "predict": ["predict", here / "run0", here / "birds" / "test" / "owl" / "0.png"],
    }


def says_where_the_data_is_missing(text: str) -> bool:
    return "gone/birds" in text


# Pages are written without pictures; weights without the test images; predictions need no data set.
WITHOUT_DATA = {
    "evaluate": 3,
    "robustness": 3,
    "export": 0,
    "compare": 0,
    "report": 0,
    "predict": 0,
}


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_a_command_without_the_data_set_says_so_and_creates_nothing(name: str, moved: Path, tmp_path: Path) -> None:
    done = call(*commands(moved)[name])
    assert done.exit_code == WITHOUT_DATA[name], done.output
    assert not (tmp_path / "gone").exists()
    if WITHOUT_DATA[name]:
        assert done.stderr.count("\n") == 1
        assert says_where_the_data_is_missing(done.stderr)
    elif name == "export":
        assert "class equal on 256 of 256 random images" in done.stdout
        assert "parity on the test images was not checked: " in done.stdout
        assert says_where_the_data_is_missing(done.stdout)
        assert (moved / "out").is_file()
    elif name == "compare":
        assert says_where_the_data_is_missing(done.stdout)
    elif name == "report":
        assert says_where_the_data_is_missing((moved / "run0" / "report.html").read_text())


@pytest.mark.parametrize("how", ["variable", "flag", "flag over variable"])
@pytest.mark.parametrize("name", [name for name in WITHOUT_DATA if name != "predict"])
def test_a_command_finds_the_data_set_where_it_is_said_to_be(
    name: str, how: str, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = commands(moved)[name]
    if how != "flag":
        monkeypatch.setenv(VARIABLE, str(moved / "birds" if how == "variable" else tmp_path / "nothing"))
    if how != "variable":
        args = [*args, f"--data-dir={moved / 'birds'}"]
    done = call(*args)
    assert done.exit_code == 0, done.output
    assert "not checked" not in done.output
    if name == "evaluate":
        summary = json.loads((moved / "run0" / "summary.json").read_text())
        assert json.loads(done.stdout)["test/accuracy"] == summary["test/accuracy"]
    if name == "export":
        assert "class equal on 18 of 18 test images" in done.stdout
    if name in ("report", "robustness"):
        assert "no pictures" not in (moved / "run0" / "report.html").read_text()
    if name == "compare":
        assert "no pictures" not in done.stdout + (moved / "compare.html").read_text()


def test_the_demo_finds_it_too(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError):
        Explainer.from_run(moved / "run0", num_images=3, data_dir=None)
    assert len(Explainer.from_run(moved / "run0", num_images=3, data_dir=moved / "birds").examples()) == 18
    monkeypatch.setenv(VARIABLE, str(moved / "birds"))
    assert len(Explainer.from_run(moved / "run0", num_images=3, data_dir=None).examples()) == 18


@pytest.mark.parametrize("dataset", ["cifar10", "auto", "cifar100"])
@pytest.mark.parametrize("name", ["evaluate", "robustness", "export", "compare", "report"])
def test_official_files_are_not_downloaded(name: str, dataset: str, moved: Path, tmp_path: Path) -> None:
    for run in ("run0", "run1"):
        path = moved / run / "settings.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"dataset": dataset}))
    done = call(*commands(moved)[name])
    assert done.exit_code == WITHOUT_DATA[name], done.output
    assert not (tmp_path / "gone").exists()
    said = done.output + (moved / "run0" / "report.html").read_text() * (name == "report")
    title = "CIFAR-100" if dataset == "cifar100" else "CIFAR-10"
    assert f"there is no {title} in {tmp_path / 'gone' / 'birds'}; give --data-dir where it is" in said


def test_another_data_set_is_not_taken_for_the_runs_own(moved: Path, tmp_path: Path) -> None:
    """The same number of classes under other names would give a wrong accuracy without a word."""
    others = write_images(tmp_path / "fish", classes=("cod", "eel", "ray"))
    for name, code in (("evaluate", 3), ("robustness", 3)):
        done = call(*commands(moved)[name], f"--data-dir={others}")
        assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
        assert f"{others} has the classes cod, eel, ray" in done.stderr
        assert "was trained on owl, robin, wren" in done.stderr
    done = call(*commands(moved)["export"], f"--data-dir={tmp_path / 'typo'}")
    assert done.exit_code == 3
    assert str(tmp_path / "typo") in done.stderr
    assert not (moved / "out").exists()


def stored(**values: Any) -> Settings:
    return Settings.stored({"recipe": "smoke", "data_dir": "/there/data", "run_dir": "/there/run"} | values)


def test_settings_of_the_place_give_way_to_what_is_said_now(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"precision": "no", "tracker": "tensorboard", "num_workers": "2", "num_threads": "1", "data_dir": "/now"}
    run = stored(precision="bf16", tracker="wandb", num_workers=8, num_threads=1, wandb_project="theirs", max_lr=0.3)
    monkeypatch.delenv("CIFAR10_ACCEL_PRECISION")  # which all tests have
    unchanged = settings_here(run, {})
    assert unchanged.model_dump() == run.model_dump()
    for name, value in said.items():
        monkeypatch.setenv(f"CIFAR10_ACCEL_{name.upper()}", value)
    monkeypatch.setenv("CIFAR10_ACCEL_MAX_LR", "9")  # makes the run what it was
    monkeypatch.setenv("CIFAR10_ACCEL_EMA_DECAY", "")
    here = settings_here(run, {"data_dir": "/flag", "tta": "flip"})
    assert (here.precision, here.tracker, here.num_workers, here.num_threads) == ("no", "tensorboard", 2, 1)
    assert (here.data_dir, here.tta, here.max_lr, here.wandb_project) == (Path("/flag"), "flip", 0.3, "theirs")
    assert data_dir_here(run, None) == Path("/now")
    assert data_dir_here(run, Path("/flag")) == Path("/flag")
    monkeypatch.setenv("CIFAR10_ACCEL_NUM_WORKERS", "many")
    with pytest.raises(SettingsError, match="num_workers: 'many'"):
        settings_here(run, {})


def test_threads_of_a_larger_machine_are_not_started_here() -> None:
    assert settings_here(stored(num_threads=num_cores() + 1), {}).num_threads is None
    assert settings_here(stored(num_threads=num_cores() + 1), {"num_threads": 4096}).num_threads == 4096
    assert settings_here(stored(num_threads=1), {}).num_threads == 1


def test_weights_that_a_run_started_from_are_not_needed_again() -> None:
    run = stored(init_from="/there/weights.safetensors", pretrained=True, model="timm:resnet18")
    here = settings_here(run, {})
    assert (here.init_from, here.pretrained) == (None, False)
    assert os.path.basename(str(run.init_from)) == "weights.safetensors"


def test_a_run_is_continued_only_on_its_own_images(moved: Path, tmp_path: Path) -> None:
    run = moved / "run0"
    assert fit(Settings(**GIVEN, data_dir=moved / "birds", run_dir=run)).summary["step"] > 0
    others = write_images(tmp_path / "others", seed=1)
    with pytest.raises(SettingsError, match=r"holds a run with other settings \(other images in data_dir .*others\)"):
        fit(Settings(**GIVEN, data_dir=others, run_dir=run))
    renamed = write_images(tmp_path / "renamed", classes=("owl", "robin", "zebra"))
    done = call("report", run, "--data-dir", renamed)
    assert done.exit_code == 0, done.output
    assert "is not the one that this run was tested on" in (run / "report.html").read_text()
