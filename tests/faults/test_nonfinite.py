"""A non-finite loss or gradient stops the run before the optimizer's step; no broken weights are saved."""

import json
from pathlib import Path

import pytest
import torch
from fault_table import OpenFault
from training_commands import TINY, flags
from trainings import finished, started, status_of

from cifar10_accel.runs import checkpoint

PLANTED = str(Path(__file__).parent.parent / "support" / "planted.py")
LR_OF_STEP_9 = "lr 0.163637"  # 0.2 at step 7, then down


def assert_nothing_broken_is_saved(run_dir: Path, *, before: int) -> None:
    """The newest checkpoint is whole, finite, and older than the faulty step; the status has the failure."""
    newest = checkpoint.newest(run_dir / "checkpoints")
    assert newest is not None
    state = checkpoint.load(newest)
    assert 0 < state.step < before
    assert all(torch.isfinite(value.float()).all() for value in state.model.values())
    assert (status_of(run_dir)["state"], status_of(run_dir)["exit_code"]) == ("failed", 4)


@pytest.mark.parametrize("planted", ["nan_pixels@9", "inf_gradient@9"])
def test_one_process(planted: str, tmp_path: Path, fault: OpenFault) -> None:
    expected = "stops before the step; names step, LR, images"
    with fault(f"{planted.replace('@', ' in step ')}", expected=expected, code=4) as ended:
        with started(tmp_path, *flags(TINY | {"run_dir": "run"}), program=(PLANTED, planted)) as process:
            done = finished(process)
        ended(done, LR_OF_STEP_9)
        assert_nothing_broken_is_saved(tmp_path / "run", before=9)
        assert done.stderr.count("error: ") == 1
        assert "step 9" in done.stderr
        found = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
        assert (found["step"], len(set(found["images"]))) == (9, 60)


@pytest.mark.long
@pytest.mark.parametrize("planted", ["nan_pixels@9", "inf_gradient@9"])
def test_on_rank_1_alone(planted: str, tmp_path: Path, fault: OpenFault) -> None:
    """The launcher turns the exit code into 1; status.json has the original."""
    expected = "both ranks stop before the step; names step, LR, images"
    with fault(f"{planted.replace('@', ' in step ')}, on rank 1 of 2 alone", expected=expected, code=1):
        run = started(
            tmp_path,
            *flags(TINY | {"run_dir": "run"}),
            program=(PLANTED, planted),
            num_processes=2,
            environment={"FAULT_RANK": "1"},
        )
        with run as process:
            done = finished(process)
        assert done.returncode == 1
        assert_nothing_broken_is_saved(tmp_path / "run", before=9)
        assert LR_OF_STEP_9 in done.stderr
        assert "step 9" in done.stderr
