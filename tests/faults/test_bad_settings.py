"""Invalid settings: exit code 2 and one line with name, value and what is allowed; never ignored.

tests/test_settings.py has more values, in one process.
"""

import json
from functools import partial
from pathlib import Path

import pytest
from fault_table import OpenFault
from training_commands import TINY, flags, run_python
from trainings import TRAIN

COMMAND_LINE = ("-m", "cifar10_accel", "train")
long = partial(pytest.param, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--max-lr=0", "max_lr: '0' is wrong: input should be greater than 0"),
        ("--max_lr=-1", "max_lr: '-1' is wrong: input should be greater than 0"),
        ("--max-lr=nan", "max_lr: 'nan' is wrong: input should be a finite number"),
        ("--max-lr=inf", "max_lr: 'inf' is wrong: input should be a finite number"),
        ("--max-lr=abc", "max_lr: 'abc' is wrong: input should be a valid number"),
        ("--max-lr=true", "max_lr: 'true' is wrong: input should be a valid number"),
        ("--max-lr=1001", "max_lr: '1001' is wrong: input should be less than or equal to 1000"),
        ("--peak-epoch=24", "peak_epoch: 24 is not before the end of 24 epochs; give --peak-epoch a value below 24"),
        ("--peak-epoch=-0.1", "peak_epoch: '-0.1' is wrong: input should be greater than or equal to 0"),
        ("--peak-epoch=30%", "peak_epoch: '30%' is wrong: input should be a valid number"),
        ("--epochs=0", "epochs: '0' is wrong: input should be greater than or equal to 1"),
        ("--epochs=2.5", "epochs: '2.5' is wrong: input should be a valid integer"),
        ("--batch-size=0", "batch_size: '0' is wrong: input should be greater than or equal to 1"),
        ("--momentum=1.0", "momentum: '1.0' is wrong: input should be less than 1"),
        ("--nesterov=perhaps", "nesterov: 'perhaps' is wrong"),
        ("--recipe=resnet25", "recipe: no recipe 'resnet25' (did you mean 'resnet9'?)"),
        ("--max-lrr=1", "No such option '--max-lrr'. (Did you mean one of: '--max-lr'"),
        ("--max-lr", "Option '--max-lr' requires an argument"),
        ("max_lr=0.1", "Got unexpected extra argument (max_lr=0.1)"),
    ],
)
def test_value(flag: str, message: str, tmp_path: Path, fault: OpenFault) -> None:
    with fault(f"setting {flag}", expected="one line: name, value, what is allowed", code=2) as ended:
        ended(run_python(*COMMAND_LINE, flag, cwd=tmp_path), message)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unknown key", b"max_lrr: 0.1\n", "max_lrr: no such setting (did you mean 'max_lr'?)"),
        ("key given twice", b"max_lr: 0.1\nmax_lr: 0.2\n", "'max_lr' is given twice"),
        ("a list at the top", b"- max_lr\n", "expected lines of `name: value`, found a list"),
        ("indented by a tab", b"augment:\n\t- crop\n", "not valid YAML"),
        ("not UTF-8", b"model: \xff\xfe\n", "cannot be read"),
        ("nested", b"optim: {max_lr: 0.1}\n", "optim: no such setting"),
        ("a tag that would run code", b"max_lr: !!python/object/apply:os.mkdir [marker]\n", "not valid YAML"),
        ("missing", None, "cannot be read"),
        ("a folder", None, "cannot be read"),
    ],
)
def test_recipe_file(name: str, content: bytes | None, message: str, tmp_path: Path, fault: OpenFault) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    elif name == "a folder":
        path.mkdir()
    with fault(f"recipe file: {name}", expected="one line that names file or key, and the remedy", code=2) as ended:
        done = run_python(*COMMAND_LINE, "--recipe=mine.yaml", cwd=tmp_path)
        ended(done, message)
        assert done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("name", "content"), [("empty", ""), ("max_lr: 1e-3", "max_lr: 1e-3\nweight_decay: 5e-4\n")])
def test_recipe_file_that_is_accepted(name: str, content: str, tmp_path: Path, fault: OpenFault) -> None:
    """Shown by an invalid flag beside it, which is then the only error."""
    (tmp_path / "mine.yaml").write_text(content)
    with fault(f"recipe file: {name}", expected="accepted (another invalid flag is the only error)", code=2) as ended:
        done = run_python(*COMMAND_LINE, "--recipe=mine.yaml", "--momentum=7", cwd=tmp_path)
        ended(done, "error: momentum: '7'")
        assert done.stderr.count("\n") == 1, done.stderr


def test_unknown_environment_variable(tmp_path: Path, fault: OpenFault) -> None:
    with fault("environment variable CIFAR10_ACCEL_MAX_LRR", expected="one line with the name meant", code=2) as ended:
        done = run_python(*COMMAND_LINE, cwd=tmp_path, CIFAR10_ACCEL_MAX_LRR="1")
        ended(done, "did you mean 'max_lr'?")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--recipe=smoke", "--batch-size=1000000000"], 2, "batch_size: 1000000000 is more than the 2000 training"),
        long(["--recipe=smoke", "--precision=fp16"], 2, "precision: 'fp16' on a CPU"),
        long(["--recipe=smoke", "--val-size=2000"], 2, "val_size: 2000 leaves nothing"),
        long(["--dataset=folder", "--data-dir=/nowhere"], 3, "/nowhere"),
        long(["--recipe=smoke", "--run-dir=/proc/x"], 2, "run_dir: /proc/x cannot be written"),
    ],
)
def test_value_that_is_invalid_for_this_data_or_machine(
    args: list[str], code: int, message: str, tmp_path: Path, fault: OpenFault
) -> None:
    with fault(f"setting {args[-1]}", expected="one line before the first step, nothing written", code=code) as ended:
        ended(run_python(*COMMAND_LINE, *args, "--tracker=none", cwd=tmp_path), message)
        assert list(tmp_path.iterdir()) in ([], [tmp_path / "home"])


@pytest.mark.long
def test_settings_of_a_run_in_a_folder(tmp_path: Path, fault: OpenFault) -> None:
    """Settings that affect the weights must stay; the others may change and are recorded in the folder."""
    args = flags(TINY | {"run_dir": "run"})
    assert run_python(*TRAIN, *args, "--max-steps=2", cwd=tmp_path).returncode == 0
    with fault("other model, seed and batch size in a run folder", expected="lists the differences", code=2) as ended:
        done = run_python(*TRAIN, *args, "--seed=1", "--width=8", "--batch-size=30", cwd=tmp_path)
        ended(done, "width 4 -> 8; batch_size 60 -> 30; seed 0 -> 1")
    # More epochs are another LR schedule, so another run; `max_steps` stops one early, to be continued.
    with fault("more epochs in a run folder", expected="refused: it is another LR curve", code=2) as ended:
        ended(run_python(*TRAIN, *args, "--epochs=4", cwd=tmp_path), "epochs 3 -> 4")
    with fault(
        "other keep_checkpoints, later max_steps in a run folder", expected="continues, recorded", code=0
    ) as ended:
        done = run_python(*TRAIN, *args, "--max-steps=4", "--keep-checkpoints=5", cwd=tmp_path)
        ended(done, "resuming from")
        assert "keep_checkpoints: 5" in (tmp_path / "run" / "settings.yaml").read_text()
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 4
