"""YAML files that people write, paths that they give, and text of any kind in files."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cifar10_accel.errors import OutOfResourcesError, SettingsError, UserError
from cifar10_accel.files import name_as_text, output_of, read_yaml, user_path, write_text
from cifar10_accel.settings import Settings


def read(text: str, folder: Path) -> dict[str, Any]:
    path = folder / "own.yaml"
    path.write_text(text)
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<<: {lr: 1, momentum: 2}\nlr: 3\n", {"lr": 3, "momentum": 2}),
        ("lr: 3\n<<: {lr: 1, momentum: 2}\n", {"lr": 3, "momentum": 2}),  # wherever it stands
        ("<<: [{lr: 1}, {lr: 2, momentum: 3}]\n", {"lr": 1, "momentum": 3}),  # the first wins
        (
            "a: &a {long_name: 1, other: 2}\nb: &b {<<: *a, long_name: 3}\nc: {<<: *b, other: 4}\n",
            {
                "a": {"long_name": 1, "other": 2},
                "b": {"long_name": 3, "other": 2},
                "c": {"long_name": 3, "other": 4},
            },
        ),
        ("{}", {}),
    ],
)
def test_merge_keys(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    assert read(text, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nlr: 1\n", "'lr' is given twice"),
        ("<<: {lr: 1}\n<<: {momentum: 1}\n", "<< is given twice"),
        ("<<: {lr: 1, lr: 2}\n", "'lr' is given twice"),
        ("a: {b: [{lr: 1, lr: 2}]}\n", "'lr' is given twice"),
        ("<<: 3\n", "<< takes a mapping"),
        ("<<: [{lr: 1}, 3]\n", "<< takes a mapping"),
        ("<<: *nothing\n", "not valid YAML"),
        ("a: &a {<<: *a}\n", "not valid YAML"),
    ],
)
def test_mappings_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"own\.yaml: not valid YAML") as raised:
        read(text, tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_true_and_false_are_booleans(tmp_path: Path) -> None:
    read_back = read("a: no\nb: off\nc: yes\nd: on\ne: y\nf: True\ng: false\n", tmp_path)
    assert read_back == {"a": "no", "b": "off", "c": "yes", "d": "on", "e": "y", "f": True, "g": False}


def test_settings_take_the_words_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("precision: no\nnesterov: no\ncompile: yes\nrun_name: off\n")
    settings = Settings(recipe=str(path))
    assert (settings.precision, settings.nesterov, settings.compile, settings.run_name) == ("no", False, True, "off")
    for false in (False, "False"):  # what W&B's agent makes of `precision: no`
        assert Settings(precision=false).precision == "no"
    with pytest.raises(SettingsError, match="precision: True"):
        Settings(precision=True)
    with pytest.raises(SettingsError, match="tta: False"):
        Settings(tta=False)


PATH_SETTINGS = ("data_dir", "run_dir", "init_from")


def test_the_home_folder_is_found_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(PATH_SETTINGS) == {
        name for name, field in Settings.model_fields.items() if "Path" in str(field.annotation)
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("run_dir: ~/from-a-file\n")
    for name in PATH_SETTINGS:
        for given in ("~/x", Path("~/x")):
            assert getattr(Settings(**{name: given}), name) == tmp_path / "x"
        monkeypatch.setenv(f"CIFAR10_ACCEL_{name.upper()}", "~/y")
        assert getattr(Settings(), name) == tmp_path / "y"
        monkeypatch.delenv(f"CIFAR10_ACCEL_{name.upper()}")
    assert Settings(recipe="~/own.yaml").run_dir == tmp_path / "from-a-file"
    assert user_path("a/~/b") == Path("a/~/b")


@pytest.mark.parametrize("name", PATH_SETTINGS)
@pytest.mark.parametrize("path", ["", "a\0b", os.fsdecode(b"caf\xe9")])
def test_no_path_is_refused(name: str, path: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: .* is (no path|not UTF-8)"):
        Settings(**{name: path})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "a\x1b[2J", "x" * 101])
def test_run_names_that_are_no_folder_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="run_name: "):
        Settings(run_name=name)


@pytest.mark.parametrize("name", ["...", "a b", "café", ".hidden", "wd[bold]"])
def test_other_run_names_are_taken(name: str) -> None:
    assert Settings(run_name=name).run_name == name


def test_text_of_any_kind_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "café \udce9")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == r"café \udce9"
    assert name_as_text(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert name_as_text("café") == "café"


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, OutOfResourcesError, "here: cannot be written (No space left on device); free some disk space"),
        (errno.EROFS, SettingsError, "run_dir: here cannot be written (Read-only file system); give another --run-dir"),
    ],
)
def test_only_a_full_disk_is_no_fault_of_the_place(number: int, kind: type[UserError], message: str) -> None:
    with pytest.raises(kind) as raised, output_of("run_dir", Path("here")):
        raise OSError(number, os.strerror(number))
    assert str(raised.value) == message
