"""A checkpoint is complete or is not used, and a failed save leaves the earlier ones unchanged."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.checkpoint import CheckpointData


def state(step: int, value: float = 1.0) -> CheckpointData:
    """A small state whose tensors are filled with `value`."""
    weight = torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last)
    return CheckpointData(
        step=step, model={"w": weight}, average=None, training={"optimizer": {"m": weight * 2}, "seconds": 1.5}
    )


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    random = torch.randn(5, 3, 2, 2).to(memory_format=torch.channels_last)
    saved = CheckpointData(
        step=7,
        model={"w": random},
        average={"n_averaged": torch.tensor(3), "module.w": random + 1},
        training={"momentum": random * 2},
    )
    loaded = checkpoint.load(checkpoint.save(tmp_path, saved, keep=2))
    assert loaded.step == 7
    assert torch.equal(loaded.model["w"], random)
    assert loaded.evaluated.keys() == {"w"}
    assert torch.equal(loaded.evaluated["w"], random + 1)
    assert torch.equal(loaded.training["momentum"], random * 2)


def test_colleagues_can_read_a_checkpoint(tmp_path: Path) -> None:
    """Files have the permissions that the umask gives to new files, which safetensors by itself does not."""
    (tmp_path / "new").touch()
    saved = checkpoint.save(tmp_path / "checkpoints", state(1), keep=2)
    modes = {path.name: path.stat().st_mode for path in saved.iterdir()}
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}, modes


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 5):
        checkpoint.save(tmp_path, state(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step-000004"


def test_the_newest_is_that_of_the_highest_step_also_after_a_million(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        checkpoint.save(tmp_path, state(step), keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-999999", "step-1000000"}
    assert checkpoint.clean_up(tmp_path) == tmp_path / "step-1000000"
    assert {path.name for path in tmp_path.iterdir()} == {"step-999999", "step-1000000"}
    _truncate(tmp_path / "step-1000000")
    assert checkpoint.clean_up(tmp_path) == tmp_path / "step-999999"
    assert {path.name for path in tmp_path.iterdir()} == {"step-999999", "step-1000000.bad"}


def _truncate(path: Path) -> None:
    file = path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def _flip_a_byte(path: Path) -> None:
    content = bytearray((path / "training.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "training.pt").write_bytes(content)


def _empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def _break_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"files": ')


def _remove_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


DAMAGES = [_truncate, _flip_a_byte, _empty, _break_the_manifest, _remove_the_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_set_aside_and_the_one_before_is_used(
    damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), keep=2)
    damage(tmp_path / "step-000002")
    assert checkpoint.clean_up(tmp_path) == tmp_path / "step-000001"
    assert "step-000002 is damaged" in capsys.readouterr().err
    assert (tmp_path / "step-000002.bad").is_dir()
    checkpoint.save(tmp_path, state(2), keep=2)  # its folder name is free again
    assert checkpoint.newest(tmp_path) == tmp_path / "step-000002"


@pytest.mark.parametrize("damage", DAMAGES)
def test_loading_a_damaged_one_is_an_input_error(damage, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1), keep=2)
    damage(path)
    with pytest.raises(InputError, match="step-000001: "):
        checkpoint.load(path)


def test_only_damaged_ones_are_an_error_not_a_silent_restart(tmp_path: Path) -> None:
    _truncate(checkpoint.save(tmp_path, state(1), keep=2))
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        checkpoint.clean_up(tmp_path)
    assert checkpoint.newest(tmp_path / "never") is None


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1), keep=2)
    (tmp_path / "step-000002.tmp").mkdir()
    (tmp_path / "step-000002.tmp" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.clean_up(tmp_path) == tmp_path / "step-000001"
    assert not (tmp_path / "step-000002.tmp").exists()


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("unexpected pos")])
def test_a_full_disk_leaves_the_old_ones_and_no_temporary_files(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, state(1), keep=2)

    def full(*_: object) -> None:
        raise fault

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutOfResourcesError, match="free some disk space"):
        checkpoint.save(tmp_path, state(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.load(tmp_path / "step-000001").step == 1


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def test_loading_runs_no_code(tmp_path: Path) -> None:
    """A malicious pickle is refused even if the manifest has its hash."""
    path = checkpoint.save(tmp_path, state(1), keep=2)
    marker = tmp_path / "was-run"
    (path / "training.pt").write_bytes(pickle.dumps(_Marker(marker), protocol=2))
    manifest = json.loads((path / "manifest.json").read_text())
    pickled = path / "training.pt"
    manifest["files"]["training.pt"] = {"bytes": pickled.stat().st_size, "sha256": checkpoint._sha256(pickled)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError):
        checkpoint.load(path)
    assert not marker.exists()


def test_another_model_is_refused_by_name_and_shape(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(InputError, match=r"weight is \(2, 4\) there but \(2, 3\) in this model"):
        checkpoint.load_into(model, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, source=tmp_path)
    with pytest.raises(InputError, match="bias is absent there"):
        checkpoint.load_into(model, {"weight": torch.zeros(2, 3)}, source=tmp_path)
    assert torch.equal(model.weight, before)


def test_an_old_one_that_is_a_link_is_pruned_by_removing_the_link(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    checkpoint.save(folder, state(1), keep=2).rename(elsewhere)
    (folder / "step-000001").symlink_to(elsewhere)
    for step in (2, 3):
        checkpoint.save(folder, state(step), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]
    assert checkpoint.load(elsewhere).step == 1


def test_weights_saved_in_place_of_a_link_replace_the_link(tmp_path: Path) -> None:
    checkpoint.save_as(tmp_path / "elsewhere", state(1))
    (tmp_path / "best").symlink_to(tmp_path / "elsewhere")
    checkpoint.save_as(tmp_path / "best", state(2))
    assert checkpoint.load(tmp_path / "best").step == 2
    assert checkpoint.load(tmp_path / "elsewhere").step == 1


def test_what_cannot_be_removed_is_said_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on NFS, where a file that another process has open cannot go from its folder."""

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if path.exists() and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), keep=2)
    (tmp_path / "step-000009.tmp").mkdir()
    monkeypatch.setattr(shutil, "rmtree", busy)
    assert checkpoint.clean_up(tmp_path) == tmp_path / "step-000002"
    assert checkpoint.save(tmp_path, state(3), keep=2) == tmp_path / "step-000003"
    said = [
        f"warning: {tmp_path / name} cannot be removed (Directory not empty)"
        for name in ("step-000009.tmp", "step-000001")
    ]
    assert capsys.readouterr().err.splitlines() == said
    assert checkpoint.newest(tmp_path) == tmp_path / "step-000003"


def test_weights_are_replaced_also_if_the_earlier_ones_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if path.exists() and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    for step in (1, 2, 3):
        checkpoint.save_as(tmp_path / "best", state(step))
        assert checkpoint.load(tmp_path / "best").step == step
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(shutil, "rmtree", remove)
    checkpoint.save_as(tmp_path / "best", state(4))
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_damaged_one_that_cannot_be_renamed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), keep=2)
    (tmp_path / "step-000002" / "model.safetensors").write_bytes(b"")

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(
        InputError, match=r"step-000002: damaged, and cannot be renamed \(Permission denied\); remove it"
    ):
        checkpoint.clean_up(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_one_that_cannot_be_read_is_not_called_damaged(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), keep=2)

    def unreadable(path: Path) -> str:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(checkpoint, "_sha256", unreadable)
    message = (
        rf"model.safetensors: cannot be read \({os.strerror(number)}\); make it readable, or move step-000002 away"
    )
    for read in (checkpoint.newest, checkpoint.clean_up, lambda folder: checkpoint.load(folder / "step-000002")):
        with pytest.raises(InputError, match=message):
            read(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
