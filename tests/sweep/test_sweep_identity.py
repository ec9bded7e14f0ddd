"""A sweep's folder belongs to one sweep, known by its content, whatever the names of files are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cifar10_accel.cli import main
from cifar10_accel.errors import SettingsError
from cifar10_accel.sweep import runner
from cifar10_accel.sweep.file import read_sweep
from cifar10_accel.sweep.search import Search, read_trials

pytest.importorskip("optuna")


def sweep_file(path: Path, searched: dict[str, Any] | None = None, **values: Any) -> Path:
    constants = {"recipe": {"value": "smoke"}, "val_size": {"value": 40}}
    given = {
        "method": "random",
        "run_cap": 2,
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": constants | (searched or {"max_lr": {"min": 0.01, "max": 1.0}}),
    }
    path.write_text(yaml.safe_dump(given | values))
    return path


def finish_one(file: Path, folder: Path, *, storage: str | None = None) -> int | None:
    """Run one trial of a file in a folder and return its number; None if the sweep has all of its two."""
    claimed = Search(read_sweep(file), folder, storage=storage).claim(num_trials=2)
    if claimed is None:
        return None
    claimed.finish("finished", value=0.5, curve=[], seconds=1, reason="")
    return claimed.number


OTHERS: dict[str, dict[str, Any]] = {
    "max_lr": {"searched": {"max_lr": {"min": 0.01, "max": 2.0}}},
    "momentum": {"searched": {"max_lr": {"min": 0.01, "max": 1.0}, "momentum": {"min": 0.1, "max": 0.5}}},
    "method": {"method": "bayes"},
    "goal": {"metric": {"name": "val/accuracy", "goal": "minimize"}},
    "metric, goal": {"metric": {"name": "val/loss", "goal": "minimize"}},
    "halving": {"early_terminate": {"type": "hyperband", "min_iter": 2}},
}


@pytest.mark.parametrize("storage", ["journal", "database"])
@pytest.mark.parametrize("name", ["s", "another"])
@pytest.mark.parametrize("difference", OTHERS)
def test_another_sweep_is_refused_under_any_name(difference: str, name: str, storage: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}" if storage == "database" else None
    folder = tmp_path / "sweep"
    first = sweep_file(tmp_path / "s.yaml")
    assert finish_one(first, folder, storage=url) == 0
    before = (folder / "identity.json").read_bytes()
    other = sweep_file(tmp_path / f"{name}.yaml", **OTHERS[difference])
    with pytest.raises(SettingsError) as refused:
        finish_one(other, folder, storage=url)
    message = str(refused.value)
    assert message.startswith(f"{folder}: holds the sweep 's', which differs in {difference}; give another --dir")
    assert "\n" not in message
    assert (folder / "identity.json").read_bytes() == before
    assert not (folder / "trial-0001").exists()


@pytest.mark.parametrize("storage", ["journal", "database"])
def test_an_equal_file_with_another_name_continues(storage: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}" if storage == "database" else None
    folder = tmp_path / "sweep"
    assert finish_one(sweep_file(tmp_path / "s.yaml"), folder, storage=url) == 0
    renamed = sweep_file(tmp_path / "renamed.yaml", name="renamed too", run_cap=9)
    assert finish_one(renamed, folder, storage=url) == 1
    assert finish_one(renamed, folder, storage=url) is None
    trials = read_trials(read_sweep(renamed), folder, storage=url)
    assert [trial.number for trial in trials] == [0, 1]
    assert trials[0].parameters != trials[1].parameters


def test_a_folder_keeps_its_storage(tmp_path: Path) -> None:
    file, url = sweep_file(tmp_path / "s.yaml"), f"sqlite:///{tmp_path / 'study.db'}"
    finish_one(file, tmp_path / "local")
    finish_one(file, tmp_path / "shared", storage=url)
    with pytest.raises(SettingsError, match="recorded in a journal; leave --storage out"):
        finish_one(file, tmp_path / "local", storage=url)
    with pytest.raises(SettingsError, match="recorded in a database; give its --storage"):
        finish_one(file, tmp_path / "shared")


def test_a_folder_of_an_earlier_version_is_known_by_its_journal(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finish_one(sweep_file(tmp_path / "s.yaml"), folder)
    (folder / "identity.json").unlink()
    with pytest.raises(SettingsError, match="holds the sweep 's', which differs in method"):
        finish_one(sweep_file(tmp_path / "other.yaml", method="bayes"), folder)
    assert finish_one(sweep_file(tmp_path / "renamed.yaml"), folder) == 1
    assert json.loads((folder / "identity.json").read_text())["study"] == "s"


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_record_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finish_one(sweep_file(tmp_path / "s.yaml"), folder)
    (folder / "identity.json").write_text(content)
    with pytest.raises(SettingsError, match=r"identity\.json: not readable"):
        finish_one(sweep_file(tmp_path / "s.yaml"), folder)


def test_the_command_refuses_before_it_touches_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", lambda *args, **kwargs: None)

    def run(file: Path) -> Result:
        return CliRunner().invoke(main, ["sweep", "run", str(file), "--dir=both"])

    assert run(sweep_file(tmp_path / "lr.yaml")).exit_code == 0
    before = {path.name: path.read_bytes() for path in Path("both").iterdir() if path.is_file()}
    refused = run(sweep_file(tmp_path / "width.yaml", {"width": {"values": [4, 8]}}))
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "both: holds the sweep 'lr', which differs in max_lr, width; give another --dir" in refused.stderr
    assert {path.name: path.read_bytes() for path in Path("both").iterdir() if path.is_file()} == before
    assert run(sweep_file(tmp_path / "lr renamed.yaml")).exit_code == 0


@pytest.mark.parametrize("folder", ["file", "file/sweep", "locked"])
def test_a_folder_that_cannot_be_written_is_one_line(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked" / ".lock").mkdir(parents=True)  # root may write into any folder
    done = CliRunner().invoke(main, ["sweep", "run", str(sweep_file(tmp_path / "s.yaml")), f"--dir={folder}"])
    assert done.exit_code == SettingsError.exit_code
    assert re.fullmatch(rf"error: dir: {folder} cannot be written \(.+\); give another --dir\n", done.stderr)
