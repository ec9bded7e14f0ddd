"""Import paths and objects in place of built-in names."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from cifar10_accel.component_names import name_of
from cifar10_accel.components import call_component, is_import_path, load_component, named_objects
from cifar10_accel.errors import InputError, SettingsError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `parts` in the current folder, which is not on the import path."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "good.py").write_text("class Outer:\n    class Inner: pass\ndef build(a, b=2, *, c): return a, b, c\n")
    (folder / "missing.py").write_text("\nimport there_is_no_such_package\n")
    (folder / "syntax.py").write_text("x = 1\ndef f(:\n")
    (folder / "raising.py").write_text("def divide():\n    return 1 / 0\ndivide()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "parts"]:
        del sys.modules[name]


def test_what_is_found(package: Path) -> None:
    assert load_component("parts.good:Outer.Inner", setting="model").__name__ == "Inner"
    assert is_import_path("parts.good:build")
    assert not is_import_path("resnet9")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("parts.god:build", SettingsError, "no module 'parts.god' (did you mean 'parts.good'?)"),
        ("partz.good:build", SettingsError, "no module 'partz' (did you mean 'parts'?)"),
        ("parts.good:biuld", SettingsError, "parts.good has no 'biuld' (did you mean 'build'?)"),
        ("parts.good:Outer.Iner", SettingsError, "has no 'Iner' (did you mean 'Inner'?)"),
        ("parts.missing:x", InputError, "No module named 'there_is_no_such_package') at parts/missing.py:2"),
        ("parts.syntax:x", InputError, "SyntaxError (invalid syntax) at parts/syntax.py:2"),
        ("parts.raising:x", InputError, "ZeroDivisionError (division by zero) at parts/raising.py:2"),
        ("object:Net@123456", SettingsError, "was given as a Python object"),
    ],
)
def test_what_is_not_found_is_one_line(path: str, error: type[Exception], message: str, package: Path) -> None:
    with pytest.raises(error) as caught:
        load_component(path, setting="loss")
    assert message in str(caught.value)
    assert str(caught.value).startswith("loss: ")
    assert "\n" not in str(caught.value)


def test_a_function_gets_what_its_signature_names(package: Path) -> None:
    build = load_component("parts.good:build", setting="model")
    known = {"a": 1, "c": 3, "other": 4}
    assert call_component(build, known, path="parts.good:build", setting="model") == (1, 2, 3)
    assert call_component(build, known, path="p", setting="model", given={"b": 5, "a": 6}) == (6, 5, 3)
    with pytest.raises(SettingsError, match="needs 'c'"):
        call_component(build, {"a": 1}, path="p", setting="model")
    with pytest.raises(SettingsError, match=r"model_args: p does not take 'bb' \(did you mean 'b'\?\)"):
        call_component(build, known, path="p", setting="model", given={"bb": 1})


def test_an_exception_names_the_line_of_the_user(package: Path) -> None:
    (package / "late.py").write_text("def load():\n    values = {}\n    return values['x']\n")
    load = load_component("parts.late:load", setting="dataset")
    with pytest.raises(InputError, match=r"dataset: parts.late:load raised KeyError \('x'\) at parts/late.py:3"):
        call_component(load, {}, path="parts.late:load", setting="dataset")


def test_what_can_be_imported_is_named_by_its_path_and_the_rest_found_by_name(package: Path) -> None:
    assert name_of(nn.Linear) == "torch.nn.modules.linear:Linear"
    assert load_component(name_of(nn.Linear), setting="model") is nn.Linear
    local = textwrap.dedent
    model = nn.Linear(2, 3)
    with named_objects({name_of(model): model}):
        assert load_component(name_of(model), setting="model") is model
    with pytest.raises(SettingsError, match="given as a Python object"):
        load_component(name_of(model), setting="model")
    assert name_of(local) == "textwrap:dedent"
