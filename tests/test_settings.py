"""Every wrong setting is one line that names it, the value seen and what is allowed."""

from pathlib import Path
from typing import Any

import pytest

from cifar10_accel.errors import SettingsError
from cifar10_accel.files import read_yaml
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import Settings


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_lr": -1}, "max_lr: -1"),
        ({"max_lr": 0}, "greater than 0"),
        ({"max_lr": float("nan")}, "max_lr: nan"),
        ({"max_lr": float("inf")}, "max_lr: inf"),
        ({"max_lr": "abc"}, "max_lr: 'abc'"),
        ({"max_lr": True}, "max_lr: True"),
        ({"momentum": 1.0}, "less than 1"),
        ({"epochs": 2.5}, "epochs: 2.5"),
        ({"epochs": 0}, "epochs: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"peak_epoch": 24}, "peak_epoch: 24"),
        ({"peak_epoch": "30%"}, "peak_epoch: '30%'"),
        ({"grad_accum_steps": 3}, "batch_size: 512"),
        ({"keep_checkpoints": 1}, "greater than or equal to 2"),
        ({"augment": "crop,flp"}, "'flp'"),
        ({"max_lrr": 1}, "did you mean 'max_lr'"),
        ({"recipe": "resnet42"}, "did you mean 'resnet9'"),
        ({"model": "speednet"}, "did you mean 'airbench94'"),  # a name of an earlier version
        ({"recipe": "original24"}, "did you mean 'resnet9_original'"),
        ({"tta": "multi-crop"}, "'none', 'flip', 'multicrop' or 'multicrop_uncertain' (did you mean 'multicrop'?)"),
        ({"run_name": "a/b"}, "run_name: 'a/b'"),
        ({"max_lr": 0.1, "max_lr.x": 3}, "max_lr is 0.1, not a mapping"),
        ({"model_args": "deep", "model_args.depth": 3}, "model_args is 'deep', not a mapping"),
    ],
)
def test_a_wrong_value_is_one_line(values: dict[str, object], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_keyword_beats_the_environment_beats_the_recipe_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("max_lr: 0.1\nmomentum: 0.1\nweight_decay: 0.1\n")
    monkeypatch.setenv("CIFAR10_ACCEL_MAX_LR", "0.2")
    monkeypatch.setenv("CIFAR10_ACCEL_MOMENTUM", "0.2")
    settings = Settings(recipe=str(recipe), max_lr=0.3)
    assert (settings.max_lr, settings.momentum, settings.weight_decay, settings.epochs) == (0.3, 0.2, 0.1, 24)


def test_an_unknown_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_ACCEL_DATADIR", "x")
    with pytest.raises(SettingsError, match="did you mean 'data_dir'"):
        Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_lr: 0.1\nmax_lr: 0.2\n", "given twice"),
        ("- 1\n", "found a list"),
        ("a:\n\t- b\n", "not valid YAML"),
        ("\xff\xfe", "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=expected) as caught:
        Settings(recipe=str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings(recipe=str(tmp_path / "none.yaml"))
    (tmp_path / "empty.yaml").touch()
    assert Settings(recipe=str(tmp_path / "empty.yaml")).epochs == 24


def test_yaml_numbers_in_scientific_form_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("weight_decay: 1e-3\n")  # YAML 1.1 reads this as a string
    assert Settings(recipe=str(tmp_path / "r.yaml")).weight_decay == 0.001


def test_written_settings_read_back_the_same(tmp_path: Path) -> None:
    settings = Settings(max_lr=0.123, augment="crop", grad_clip=1.0, run_dir=tmp_path)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    assert Settings.stored(read_yaml(tmp_path / "settings.yaml")) == settings


def test_written_settings_outlive_their_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("max_lr: 0.1\n")
    (tmp_path / "settings.yaml").write_text(Settings(recipe=str(recipe)).to_yaml())
    recipe.unlink()
    assert Settings.stored(read_yaml(tmp_path / "settings.yaml")).max_lr == 0.1


def test_the_fingerprint_changes_with_the_math_alone() -> None:
    base = Settings()
    assert Settings(num_workers=3, tracker="none", keep_checkpoints=5).fingerprint() == base.fingerprint()
    assert Settings(seed=1).fingerprint() != base.fingerprint()
    assert set(Settings.model_fields) >= base.DOES_NOT_AFFECT_WEIGHTS


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_opens_with_its_command(name: str) -> None:
    settings = Settings(recipe=name)
    assert settings.resolve_recipe(on_cpu=True) is settings
    text = (Path(__file__).parent.parent / "cifar10_accel" / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith("# accelerate launch")
    assert f"--recipe {name}" in text.splitlines()[0]


def test_auto_becomes_a_recipe_and_what_was_given_wins() -> None:
    for on_cpu, recipe in ((True, "cpu"), (False, "resnet9")):
        assert Settings().resolve_recipe(on_cpu=on_cpu) == Settings(recipe=recipe)
        given = Settings(max_lr=0.123, seed=7).resolve_recipe(on_cpu=on_cpu)
        assert given == Settings(recipe=recipe, max_lr=0.123, seed=7)


@pytest.mark.parametrize(
    ("given", "peak_epoch"),
    [
        ({"recipe": "resnet9", "epochs": 12}, 2.5),
        ({"recipe": "resnet9", "epochs": "48"}, 10),
        ({"recipe": "accuracy96", "epochs": 10}, 1),
        ({"recipe": "cpu", "epochs": 2}, 0),
        ({"recipe": "resnet9", "epochs": 12, "peak_epoch": 4}, 4),
        ({"recipe": "resnet9"}, 5),
    ],
)
def test_epochs_alone_keep_the_share_of_the_peak(given: dict[str, Any], peak_epoch: float, tmp_path: Path) -> None:
    settings = Settings(**given)
    assert settings.peak_epoch == peak_epoch
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    assert Settings.stored(read_yaml(tmp_path / "settings.yaml")) == settings


def test_a_short_run_of_the_recipe_auto_is_valid_wherever_it_is_resolved() -> None:
    settings = Settings(epochs=2)
    assert settings.resolve_recipe(on_cpu=True).peak_epoch == 0
    assert settings.resolve_recipe(on_cpu=False).peak_epoch == 5 * 2 / 24
    with pytest.raises(SettingsError, match="peak_epoch: 3 is not before the end of 2 epochs"):
        Settings(epochs=2, peak_epoch=3)


def test_epochs_of_the_environment_move_the_peak_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_ACCEL_EPOCHS", "6")
    assert Settings(recipe="resnet9").peak_epoch == 1.25


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
