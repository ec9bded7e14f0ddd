"""Damaged checkpoints: the previous one is used, with a warning; never a silent new start.

tests/runs/test_checkpoint.py has each kind of damage without a training. Names in a checkpoint never have a prefix of
torch.compile or DDP, because the plain model is saved.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from fault_table import Count, OpenFault, Straight
from training_commands import TINY, flags, run_python
from trainings import TRAIN, assert_same_bits


def truncate(path: Path) -> None:
    """As by a full disk."""
    weights = path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    """As by a failing disk."""
    content = bytearray((path / "training.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "training.pt").write_bytes(content)


def remove_the_manifest(path: Path) -> None:
    """As by an incomplete copy."""
    (path / "manifest.json").unlink()


def empty(path: Path) -> None:
    """As left by other programs that were killed."""
    for file in path.iterdir():
        file.unlink()


def come_from_the_future(path: Path) -> None:
    """A format that this version does not know."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))


DAMAGES = {
    truncate: "model.safetensors has",
    flip_a_bit: "the contents of training.pt have changed",
    remove_the_manifest: "manifest.json is missing",
    empty: "manifest.json is missing",
    come_from_the_future: "its format version is 99",
}


STOPPED = TINY | {"max_steps": 13}  # leaves checkpoints of steps 12 and 13


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_newest_damaged(damage, straight: Straight, tmp_path: Path, fault: OpenFault, count: Count) -> None:
    shutil.copytree(straight(STOPPED), tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "epo')  # a process can be killed at any byte of a line
    damage(tmp_path / "run" / "checkpoints" / "step-000013")
    what = f"newest checkpoint damaged: {damage.__name__.replace('_', ' ')}; half a line of metrics"
    with fault(what, expected="reason said, set aside, the one before; same bits", code=0) as ended:
        args = flags(TINY | {"run_dir": "run"})
        done = run_python(*TRAIN, *args, cwd=tmp_path)
        ended(done, f"step-000013 is damaged ({DAMAGES[damage]}", "resuming from run/checkpoints/step-000012")
        count("bits compared", assert_same_bits(straight(TINY), tmp_path / "run"))


@pytest.mark.long
def test_all_damaged_and_another_model(straight: Straight, tmp_path: Path, fault: OpenFault) -> None:
    """There is no switch that starts anew over damaged checkpoints: deleting the folder, as the message says, is it."""
    shutil.copytree(straight(STOPPED), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    with fault(
        "weights of another width under a whole manifest", expected="first name that differs, both shapes", code=3
    ) as ended:
        settings = (tmp_path / "run" / "settings.yaml").read_text()
        (tmp_path / "run" / "settings.yaml").write_text(settings.replace("width: 4", "width: 8"))
        done = run_python("-m", "cifar10_accel", "evaluate", "run", cwd=tmp_path)
        ended(done, "there but (", "in this model; use the settings of that run")
        assert done.stderr.count("\n") == 1
        (tmp_path / "run" / "settings.yaml").write_text(settings)
    for path in checkpoints.iterdir():
        truncate(path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    args = flags(TINY | {"run_dir": "run"})
    for command in ((*TRAIN, *args), ("-m", "cifar10_accel", "evaluate", "run")):
        name = command[1].removeprefix("cifar10_accel.").replace("cifar10_accel", "evaluate")
        with fault(
            f"all checkpoints damaged, {name}", expected="says so and stops; no silent new start", code=3
        ) as ended:
            ended(run_python(*command, cwd=tmp_path), "every checkpoint is damaged (step-000012, step-000013); delete")
            assert sorted(path.name for path in tmp_path.rglob("*")) == before
    with fault("evaluate of a folder without a checkpoint", expected="one line", code=3) as ended:
        shutil.rmtree(checkpoints)
        done = run_python("-m", "cifar10_accel", "evaluate", "run", cwd=tmp_path)
        ended(done, "no checkpoint there")
        assert done.stderr.count("\n") == 1
