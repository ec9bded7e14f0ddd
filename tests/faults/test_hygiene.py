"""Unusual environments: the run gives the same result, or ends with an error of one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_table import Count, OpenFault, Straight
from training_commands import REPOSITORY, TINY, flags, run_python
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

from cifar10_accel.errors import InputError
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

# Replaces the wall clock of every process that imports it: each reading is a minute earlier than the previous one.
BACKWARDS = """
import itertools, time
now, minutes = time.time(), itertools.count()
time.time = lambda: now - 60 * next(minutes)
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.long
def test_odd_surroundings_change_no_bit(tmp_path: Path, fault: OpenFault, count: Count, straight: Straight) -> None:
    """Four at once, because none of them may have an effect."""
    args = flags(TINY)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BACKWARDS)
    odd = tmp_path / "a run \u00fcber 100%" / "\u65e5\u672c"
    what = "backward clock, read-only HOME, python -O, blanks and unicode in the run folder"
    with fault(what, expected="the same bits", code=0) as ended:
        path = f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent.parent}"
        environment = {"HOME": "/proc/nowhere", "HF_HOME": "/proc/nowhere", "PYTHONPATH": path}
        ended(run_python("-O", *TRAIN, *args, f"--run-dir={odd}", cwd=tmp_path, **environment))
        count("bits compared", assert_same_bits(straight(TINY), odd))


@pytest.mark.long
def test_stdout_closed_by_its_reader(tmp_path: Path, fault: OpenFault) -> None:
    """As after `| head -1`: the training continues without output."""
    with fault("training | head -1", expected="trains to the end", code=0) as ended:
        with started(tmp_path, *flags(TINY | {"run_dir": "run"})) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            process.stdout = None
            ended(finished(process))
        assert status_of(tmp_path / "run")["state"] == "finished"


def test_output_of_a_command_closed_by_its_reader(tmp_path: Path, fault: OpenFault) -> None:
    with fault("recipes | head -1", expected="no traceback", code="any"):
        command = f"{sys.executable} -m cifar10_accel recipes | head -1"
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == recipe_names()[0]
        assert done.stderr == ""


@pytest.mark.long
def test_two_trainings_in_one_folder(tmp_path: Path, fault: OpenFault) -> None:
    args = flags(SLOWER | {"run_dir": "run", "epochs": 50})
    with started(tmp_path, *args) as process:
        wait_for_step(process, tmp_path / "run", 1)
        with fault("two trainings in one run folder", expected="the second ends, the first goes on", code=2) as ended:
            ended(run_python(*TRAIN, *args, cwd=tmp_path), "run_dir: another training is running in run")
            assert process.poll() is None


@pytest.mark.long
def test_loader_worker_killed(tmp_path: Path, fault: OpenFault, count: Count, straight: Straight) -> None:
    run = tmp_path / "run"
    args = flags(SLOWER | {"augment_backend": "albumentations", "num_workers": 2})
    with fault("kill -9 to a loader worker", expected="the run ends at once; same bits after", code="not 0"):
        with started(tmp_path, *args, "--run-dir=run") as process:
            wait_for_step(process, run, 30)
            workers = children_of(process.pid)
            for worker in workers:  # so that the loop waits for them when one is killed
                os.kill(worker, signal.SIGSTOP)
            time.sleep(1)
            os.kill(workers[0], signal.SIGKILL)
            os.kill(workers[1], signal.SIGCONT)
            count("kills", 1)
            done = finished(process)
        assert done.returncode > 0
        assert "worker" in done.stderr
        assert status_of(run)["state"] == "failed"
        assert run_python(*TRAIN, *args, "--run-dir=run", cwd=tmp_path).returncode == 0
        count("bits compared", assert_same_bits(straight(SLOWER), run))


@pytest.mark.long
def test_loader_worker_killed_for_want_of_memory(tmp_path: Path, fault: OpenFault) -> None:
    """The usual reason why the kernel kills a worker."""
    args = flags(SLOWER | {"augment_backend": "albumentations", "num_workers": 2, "run_dir": "run"})
    with (
        fault("kill -9 to a loader worker: message", expected="one line: worker, memory, remedy", code=5) as ended,
        started(tmp_path, *args) as process,
    ):
        wait_for_step(process, tmp_path / "run", 5)
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
        ended(finished(process), "worker", "memory")


@pytest.mark.long
def test_range_test_that_diverges(tmp_path: Path, fault: OpenFault) -> None:
    """The command itself; it must not create a run folder."""
    with fault("lr-range that diverges at once", expected="no suggestion, and why; no run folder", code=0) as ended:
        args = ["--start-lr=500", "--end-lr=1000", "--steps=12", "--out=curve"]
        done = run_python("-m", "cifar10_accel", "lr-range", *flags(TINY), *args, "--logit-scale=1e30", cwd=tmp_path)
        ended(done, "no suggestion: ")
        assert sorted(path.name for path in tmp_path.iterdir()) in (["curve"], ["curve", "home"])


def test_a_refused_run_releases_its_folder(tmp_path: Path, fault: OpenFault) -> None:
    """In Python, where the error may be kept (as by notebooks) while the same process tries again."""
    settings = Settings(**(TINY | {"run_dir": tmp_path / "run", "max_steps": 1, "precision": "no"}))
    damaged = tmp_path / "run" / "checkpoints" / "step-000001"
    damaged.mkdir(parents=True)
    with fault("refused before the first step, tried again in Python", expected="it trains", code="-"):
        with pytest.raises(InputError, match="every checkpoint is damaged") as kept:
            fit(settings)
        damaged.rmdir()
        assert fit(settings).summary["step"] == 1
        assert kept.value.exit_code == 3
