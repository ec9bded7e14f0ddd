"""Start from trained weights, and freeze some of them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from trainings import bits_of

from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.models.fine_tuning import freeze, load_fitting, read_weights
from cifar10_accel.models.registry import build_model
from cifar10_accel.settings import ModelSettings, Settings
from cifar10_accel.train import fit

SMALL = {
    "recipe": "smoke",
    "dataset": "synthetic",
    "synthetic_size": 200,
    "batch_size": 50,
    "width": 4,
    "epochs": 1,
    "num_threads": 1,
    "tracker": "none",
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "run"
    fit(Settings(**SMALL, run_dir=folder))
    return folder


def _newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("source", ["run", "checkpoint", "safetensors"])
def test_training_starts_with_the_weights_and_frozen_ones_stay(source: str, parent: Path, tmp_path: Path) -> None:
    path = {"run": parent, "checkpoint": _newest(parent), "safetensors": _newest(parent) / "model.safetensors"}[source]
    run = fit(Settings(**SMALL, seed=1, init_from=path, freeze="stem,backbone.*", run_dir=tmp_path / "child"))
    before, after = load_file(_newest(parent) / "model.safetensors"), load_file(_newest(run.path) / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight"}  # of the frozen norms not even the statistics
    assert run.settings.init_from == path


def test_a_head_of_another_size_starts_new_and_is_said(parent: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(ModelSettings(width=4), num_classes=3)
    head = model.state_dict()["head.weight"].clone()
    with caplog.at_level("INFO"):
        load_fitting(model, read_weights(parent), source=parent)
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert "head.weight (3, 32) (there (10, 32))" in caplog.text
    stem = read_weights(parent)["stem.0.weight"]
    assert torch.equal(model.state_dict()["stem.0.weight"], stem)


def test_weights_of_which_nothing_fits_are_refused(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing in .* fits this model"):
        fit(Settings(**SMALL | {"width": 8}, model="resnet18", init_from=parent, run_dir=tmp_path / "a"))
    with pytest.raises(InputError, match="no checkpoint there"):
        fit(Settings(**SMALL, init_from=tmp_path, run_dir=tmp_path / "b"))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        fit(Settings(**SMALL, init_from=tmp_path / "broken.safetensors", run_dir=tmp_path / "c"))


@pytest.mark.parametrize(("pattern", "message"), [("nothing.*", "no parameter matches"), ("*", "nothing to train")])
def test_patterns_that_cannot_be_meant(pattern: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        freeze(build_model(ModelSettings(width=4), num_classes=3), (pattern,))


def test_fine_tuning_resumes_with_the_same_bits(parent: Path, tmp_path: Path) -> None:
    settings = SMALL | {"epochs": 2, "seed": 2, "init_from": parent, "freeze": "stem", "checkpoint_every": 0.5}
    straight = fit(Settings(**settings, run_dir=tmp_path / "straight"))
    fit(Settings(**settings, run_dir=tmp_path / "stopped", max_steps=3))
    resumed = fit(Settings(**settings, run_dir=tmp_path / "stopped"))
    weights = [
        {name: value for name, value in bits_of(run.path).items() if "/model/" in name} for run in (straight, resumed)
    ]
    assert weights[0] == weights[1]
    assert weights[0]


def test_a_run_continues_without_the_weights_that_it_began_with(parent: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parent, tmp_path / "copy")
    settings = SMALL | {"epochs": 2, "init_from": copy, "checkpoint_every": 0.5}
    straight = fit(Settings(**settings, run_dir=tmp_path / "straight"))
    fit(Settings(**settings, run_dir=tmp_path / "stopped", max_steps=3))
    shutil.rmtree(copy)
    resumed = fit(Settings(**settings, run_dir=tmp_path / "stopped"))
    assert straight.summary["test/loss"] == resumed.summary["test/loss"]
    assert fit(Settings(**settings, run_dir=tmp_path / "straight")).summary == straight.summary  # finished
    with pytest.raises(InputError, match="no checkpoint there"):
        fit(Settings(**settings, run_dir=tmp_path / "new"))


class Wrapped(nn.Module):
    """A model with a part of the name that exported files have before every name."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = nn.Linear(3, 4), nn.Linear(4, 2)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_part_named_model_is_loaded_as_any_other(prefix: str, tmp_path: Path) -> None:
    saved, model, path = Wrapped(), Wrapped(), tmp_path / "weights.safetensors"
    save_file({f"{prefix}{name}": value for name, value in saved.state_dict().items()}, path)
    load_fitting(model, read_weights(path), source=path)
    for name, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
