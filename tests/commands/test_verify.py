"""verify-parallel and verify-resume: results for a correct training and for broken ones."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from training_commands import REPOSITORY, TINY, flags, run_python

from cifar10_accel.commands.verify_parallel import (
    TOLERANCES,
    Comparison,
    compare,
    read_step_log,
    table,
    verify_parallel,
)
from cifar10_accel.commands.verify_resume import compare as compare_runs
from cifar10_accel.commands.verify_resume import kill_moments, last_step
from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the command with tiny settings on 1 and 2 processes; return the process and the folder of the step logs."""
    folder = tmp_path_factory.mktemp("verified")
    options = ["--procs=1,2", "--steps=8", "--dir=kept"]
    done = run_python("-m", "cifar10_accel", "verify-parallel", *options, *flags(TINY), cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, folder / "kept"


def test_one_and_two_processes_agree(verified: Any) -> None:
    done, folder = verified
    assert "the same LR, images and pixels" in done.stdout
    assert "differ " not in done.stdout
    two, one = (read_step_log(folder / f"processes-{name}.jsonl") for name in ("2-accum-1", "1-accum-2"))
    assert (two[0]["processes"], one[0]["processes"]) == (2, 1)
    assert [line["step"] for line in two[1:]] == list(range(8))
    assert two[1]["indices"] == one[1]["indices"]
    assert len(set(two[1]["indices"])) == TINY["batch_size"]
    assert all(line["gradient_norm"] > 0 for line in two[1:])


def changed(verified: Any, step: int, **changes: Any) -> Comparison:
    """Compare the step log of two processes, changed in one step, with that of the same micro-batches."""
    _, folder = verified
    expected = read_step_log(folder / "processes-1-accum-2.jsonl")
    found = copy.deepcopy(expected)
    found[0]["processes"] = 2
    found[1 + step] |= changes
    return compare(found, expected, micro_batches="2 micro-batches", tolerances=TOLERANCES)


def test_the_first_difference_of_each_quantity_is_reported(verified: Any) -> None:
    line = read_step_log(verified[1] / "processes-1-accum-2.jsonl")[6]
    swapped = [line["indices"][1], line["indices"][0], *line["indices"][2:]]
    (fault,) = changed(verified, 5, indices=swapped).faults
    assert fault == (
        "2 processes against 1 with 2 micro-batches: indices of step 6 differ: "
        f"image 0 of the batch is {swapped[0]}, not {swapped[1]}"
    )
    assert "pixels of step 6 differ: their hash is 0123" in changed(verified, 5, pixels="0123").faults[0]
    assert "lr of step 8 is 0.5, not" in changed(verified, 7, lr=0.5).faults[0]
    assert changed(verified, 5).faults == []


def test_numbers_are_judged_where_rounding_has_not_grown(verified: Any) -> None:
    loss = read_step_log(verified[1] / "processes-1-accum-2.jsonl")[1]["loss"]
    assert changed(verified, 0, loss=loss * (1 + 1e-5)).faults == []
    assert "relative difference 2.0e-04" in changed(verified, 0, loss=loss * (1 + 2e-4)).faults[0]
    assert "loss of step 3 is nan" in changed(verified, 2, loss=float("nan")).faults[0]
    assert "gradient_norm of step 2 is None" in changed(verified, 1, gradient_norm=None).faults[0]
    late = changed(verified, 3, loss=loss * 1.5)
    assert (late.faults, late.findings[3].largest > 0.1) == ([], True)
    assert table([late]).row_count == 1


def test_a_step_log_that_ends_early_is_a_fault(verified: Any) -> None:
    expected = read_step_log(verified[1] / "processes-1-accum-2.jsonl")
    assert "7 steps instead of 8" in compare(expected[:-1], expected, micro_batches="", tolerances=TOLERANCES).faults[0]


# Ranks that do not average the gradient, as with a model that was not prepared by Accelerate.
BROKEN = """
import torch.nn.parallel as parallel
parallel.DistributedDataParallel.forward = lambda self, *args: self.module(*args)
from cifar10_accel.cli import main
main()
"""


def test_gradients_that_are_not_shared_are_found(verified: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    args = ["--out=broken.jsonl", "--steps=2", *flags(TINY)]
    done = run_python("broken.py", "step-log", *args, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    expected = read_step_log(verified[1] / "processes-1-accum-2.jsonl")[:3]
    faults = compare(read_step_log(tmp_path / "broken.jsonl"), expected, micro_batches="", tolerances=TOLERANCES).faults
    assert "gradient_norm of step 1" in faults[-1]
    assert not any("indices" in fault or "pixels" in fault for fault in faults)


@pytest.mark.parametrize(
    ("counts", "message"), [([1], "nothing to compare with one process"), ([1, 7], "cannot be shared by 7 processes")]
)
def test_what_cannot_be_compared_is_refused(counts: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        verify_parallel(TINY, counts=counts, num_steps=2, folder=tmp_path)


def test_the_error_of_a_failed_run_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit code; inside a launch nothing is started."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    wrong = TINY | {"dataset": "folder", "data_dir": "/nowhere"}
    with pytest.raises(UserError, match="the run on 1 process failed: /nowhere") as raised:
        verify_parallel(wrong, counts=[2], num_steps=2, folder=tmp_path)
    assert raised.value.exit_code == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="starts its own processes"):
        verify_parallel(TINY, counts=[1, 2], num_steps=2, folder=tmp_path)


@pytest.mark.long
def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    slower = TINY | {"synthetic_size": 1200, "width": 16, "ema_decay": 0.9, "checkpoint_every": 0.3}
    args = ["--kills=2", "--kill-seed=5", "--dir=kept", *flags(slower)]
    done = run_python("-m", "cifar10_accel", "verify-resume", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same bits") == 5
    assert done.stdout.count("killed -9 after step ") == 2
    assert "--kill-seed 5" in done.stdout
    assert "resuming from" in (tmp_path / "kept" / "killed.log").read_text()
    again = run_python("-m", "cifar10_accel", "verify-resume", *args, cwd=tmp_path)
    assert (again.returncode, "kept is not empty" in again.stderr) == (2, True)


def test_differences_between_runs_are_found(tmp_path: Path) -> None:
    """A weight in its last bit, a momentum, a line of metrics; but not measured times."""
    one, other, later = (RunFolder(tmp_path / name) for name in ("one", "other", "later"))
    for folder, changes in ((one, {}), (other, {"eval_batch_size": 7}), (later, {"max_lr": 0.2000001})):
        fit(Settings(**(TINY | {"run_dir": folder.path, "max_steps": 7} | changes)))
    assert [row.first_difference for row in compare_runs(one, other)] == [""] * 4
    found = {row.part: row.first_difference for row in compare_runs(one, later)}
    assert "differs: by up to" in found["weights"]
    assert "momentum_buffer differs" in found["optimizer state"]
    assert found["metrics.jsonl"].startswith("0.lr differs: 0.00800000")
    assert "loss differs" in found["training dynamics"]
    lines = other.metrics.read_text().splitlines()
    other.metrics.write_text("\n".join(lines[:-1]) + "\n")
    assert "only one run has" in compare_runs(one, other)[-1].first_difference


def test_kills_are_drawn_from_the_seed_and_fit_the_run(tmp_path: Path) -> None:
    moments = kill_moments(3, num_steps=18, step_seconds=0.1, seed=1)
    assert moments == kill_moments(3, num_steps=18, step_seconds=0.1, seed=1)
    assert moments != kill_moments(3, num_steps=18, step_seconds=0.1, seed=2)
    assert [1 <= step < 18 and 0 <= delay <= 0.2 for step, delay in moments] == [True] * 3
    assert moments == sorted(moments)
    with pytest.raises(SettingsError, match="kills: 3 in a run of 3 steps"):
        kill_moments(3, num_steps=3, step_seconds=0.1, seed=1)


def test_the_last_step_is_that_of_the_last_complete_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text(json.dumps({"step": 3}) + "\n" + json.dumps({"step": 4}) + "\n" + '{"step": 5')
    assert last_step(path) == 4
