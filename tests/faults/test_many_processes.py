"""Ranks that die or hang: all end within a bounded time, no process is left, the run can be continued.

tests/training/test_distributed.py has the other properties of runs on several processes.
"""

import os
import signal
import time
from pathlib import Path

import pytest
from fault_table import Count, OpenFault, Straight
from training_commands import TINY, flags, run_python
from trainings import (
    SLOWER,
    TRAIN,
    assert_same_bits,
    children_of,
    finished,
    started,
    status_of,
    wait_for_step,
)

PLANTED = str(Path(__file__).parent.parent / "support" / "planted.py")
OFTEN = {"checkpoint_every": 0.3}
LIMIT_SECONDS = 60


def is_running(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
def test_one_rank_is_killed(tmp_path: Path, fault: OpenFault, count: Count, straight: Straight) -> None:
    args = flags(SLOWER | OFTEN)
    run = tmp_path / "run"
    with fault("kill -9 to one rank of two", expected="all end within 60 s, no orphan, same bits after", code=1):
        with started(tmp_path, *args, "--run-dir=run", num_processes=2) as process:
            wait_for_step(process, run, 30)
            ranks = children_of(process.pid)
            assert len(ranks) == 2
            os.kill(ranks[1], signal.SIGKILL)
            count("kills", 1)
            assert finished(process, timeout=LIMIT_SECONDS).returncode == 1
            assert [rank for rank in ranks if is_running(rank)] == []
        assert run_python(*TRAIN, *args, "--run-dir=run", cwd=tmp_path, num_processes=2).returncode == 0
        count("bits compared", assert_same_bits(straight(SLOWER, num_processes=2), run))


@pytest.mark.long
def test_the_launcher_restarts_a_run_that_lost_a_rank(
    tmp_path: Path, fault: OpenFault, count: Count, straight: Straight
) -> None:
    run = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "--max_restarts=1")
    with fault("kill -9 to one rank under --max_restarts", expected="restarted, resumes by itself", code=0):
        with started(tmp_path, *flags(SLOWER | OFTEN | {"run_dir": run}), program=(*launcher, *TRAIN)) as process:
            wait_for_step(process, run, 30)
            os.kill(children_of(process.pid)[1], signal.SIGKILL)
            count("kills", 1)
            done = finished(process)
        assert done.returncode == 0, done.stderr
        assert "resuming from" in done.stdout
        count("bits compared", assert_same_bits(straight(SLOWER, num_processes=2), run))


@pytest.mark.long
def test_one_rank_hangs(tmp_path: Path, fault: OpenFault) -> None:
    """The launcher gives the hung rank 30 s to end."""
    run = tmp_path / "run"
    with fault("one rank of two hangs", expected="all end by timeout, no orphan", code=1):
        hanging = started(
            tmp_path,
            *flags(TINY | {"run_dir": run, "collective_timeout": 10}),
            program=(PLANTED, "hang@9"),
            num_processes=2,
            environment={"FAULT_RANK": "1"},
        )
        with hanging as process:
            wait_for_step(process, run, 8)
            ranks, start = children_of(process.pid), time.monotonic()
            assert finished(process, timeout=2 * LIMIT_SECONDS).returncode == 1
            assert time.monotonic() - start < LIMIT_SECONDS
            assert [rank for rank in ranks if is_running(rank)] == []
        assert status_of(run)["state"] == "failed"


@pytest.mark.long
def test_another_number_of_processes_is_reported(tmp_path: Path, fault: OpenFault) -> None:
    args = flags(TINY | {"run_dir": "run"})
    assert run_python(*TRAIN, *args, "--max-steps=8", cwd=tmp_path, num_processes=2).returncode == 0
    with fault(
        "saved on two processes, continued on one", expected="continues, warns that bits differ", code=0
    ) as ended:
        ended(run_python(*TRAIN, *args, cwd=tmp_path), "resuming from", "bits")
