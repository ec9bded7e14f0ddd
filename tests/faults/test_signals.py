"""SIGTERM and SIGINT: saved after the next step, exit code 143 or 130, and the same command continues."""

import os
import signal
import time
from pathlib import Path

import pytest
from fault_table import Count, OpenFault, Straight
from training_commands import flags, run_python
from trainings import (
    LAST_STEP,
    SLOWER,
    TRAIN,
    assert_same_bits,
    children_of,
    finished,
    started,
    status_of,
    wait_for_step,
    wait_until,
)

from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.metrics_jsonl import read_metrics

PLANTED = str(Path(__file__).parent.parent / "support" / "planted.py")
IN_WORKERS = SLOWER | {"augment_backend": "albumentations", "num_workers": 2}
HANG_SECONDS = 60  # it takes less than ten; a busy machine may need more


def test_sigterm_to_the_process_group(tmp_path: Path, fault: OpenFault) -> None:
    """Loader workers get it too, as from Ctrl-C or a batch system."""
    with fault(
        "SIGTERM to the group, two loader workers", expected="saved after the next step, no traceback", code=143
    ) as ended:
        with started(tmp_path, *flags(IN_WORKERS | {"run_dir": "run"})) as process:
            wait_for_step(process, tmp_path / "run", 5)
            os.killpg(process.pid, signal.SIGTERM)
            ended(finished(process, timeout=HANG_SECONDS), "the same command continues")
        status = status_of(tmp_path / "run")
        assert (status["state"], status["exit_code"]) == ("preempted", 143)
        last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
        newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
        assert newest == tmp_path / "run" / "checkpoints" / f"step-{last:06.0f}"
        assert last < LAST_STEP


@pytest.mark.long
def test_both_signals_in_one_run(tmp_path: Path, fault: OpenFault, count: Count, straight: Straight) -> None:
    args = flags(IN_WORKERS)
    run = tmp_path / "run"
    for number, code, step in ((signal.SIGINT, 130, 7), (signal.SIGTERM, 143, 45)):
        with fault(f"{number.name}, then the same command", expected="saved, continues, same bits", code=code) as ended:
            with started(tmp_path, *args, "--run-dir=run") as process:
                wait_for_step(process, run, step)
                os.killpg(process.pid, number)
                ended(finished(process, timeout=HANG_SECONDS), "the same command continues")
            assert status_of(run)["exit_code"] == code
            if number == signal.SIGTERM:
                assert run_python(*TRAIN, *args, "--run-dir=run", cwd=tmp_path).returncode == 0
                count("bits compared", assert_same_bits(straight(SLOWER), run))


@pytest.mark.long
def test_a_second_signal_does_not_wait(tmp_path: Path, fault: OpenFault) -> None:
    run = tmp_path / "run"
    with fault(
        "second SIGTERM during a save", expected="ends at once; the checkpoint before is whole", code=143
    ) as ended:
        with started(tmp_path, *flags(SLOWER | {"run_dir": run}), program=(PLANTED, "slow_save")) as process:
            wait_for_step(process, run, 30)
            process.send_signal(signal.SIGTERM)
            wait_until(process, lambda: any(run.glob("checkpoints/*.tmp")))
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            ended(finished(process, timeout=HANG_SECONDS))
        assert time.monotonic() - start < 10
        assert any(run.glob("checkpoints/*.tmp")), "the save was allowed to finish"
        assert checkpoint.newest(run / "checkpoints") == run / "checkpoints" / "step-000026"


@pytest.mark.long
def test_sigterm_to_one_rank_of_two(tmp_path: Path, fault: OpenFault, count: Count, straight: Straight) -> None:
    """The launcher turns the ranks' 143 into 1; status.json has the original."""
    args = flags(SLOWER)
    run = tmp_path / "run"
    with fault("SIGTERM to one rank of two", expected="both stop at the same step, same bits after", code=1):
        with started(tmp_path, *args, "--run-dir=run", num_processes=2) as process:
            wait_for_step(process, run, 5)
            os.kill(children_of(process.pid)[-1], signal.SIGTERM)
            done = finished(process, timeout=HANG_SECONDS)
        assert done.returncode == 1
        assert done.stderr.count("the same command continues") == 1, done.stderr
        assert (status_of(run)["state"], status_of(run)["exit_code"]) == ("preempted", 143)
        (saved,) = (run / "checkpoints").iterdir()
        assert f"after step {int(saved.name.removeprefix('step-'))} of {LAST_STEP}" in done.stderr
        assert run_python(*TRAIN, *args, "--run-dir=run", cwd=tmp_path, num_processes=2).returncode == 0
        count("bits compared", assert_same_bits(straight(SLOWER, num_processes=2), run))
