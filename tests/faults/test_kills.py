"""kill -9 at any moment, then the same command again: it ends with the bits of an uninterrupted run."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from fault_table import Count, OpenFault, Straight
from training_commands import TINY, flags, run_python
from trainings import LAST_STEP, SLOWER, TRAIN, assert_same_bits, kill, started, status_of, wait_for_step, wait_until

from cifar10_accel.runs.metrics_jsonl import read_metrics

PLANTED = str(Path(__file__).parent.parent / "support" / "planted.py")
OFTEN = {"checkpoint_every": 0.3}  # every eight steps
SEED = int(os.environ.get("FAULTS_SEED", "0"))  # of the random moments of the kills


def assert_every_step_logged_once(run_dir: Path) -> None:
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "lr" in line]
    assert steps == list(range(1, LAST_STEP + 1))


def test_one_kill(tmp_path: Path, fault: OpenFault, count: Count, straight: Straight) -> None:
    """A quick variant of the tests below."""
    args = flags(SLOWER | OFTEN)
    with fault("kill -9 in the middle of an epoch", expected="resumes; ends with the same bits", code=0) as ended:
        with started(tmp_path, *args, "--run-dir=killed") as process:
            wait_for_step(process, tmp_path / "killed", 30)
            kill(process)
        count("kills", 1)
        assert status_of(tmp_path / "killed")["state"] == "running"
        ended(run_python(*TRAIN, *args, "--run-dir=killed", cwd=tmp_path), "resuming from killed/checkpoints/step-0000")
        count("bits compared", assert_same_bits(straight(SLOWER), tmp_path / "killed"))
        assert_every_step_logged_once(tmp_path / "killed")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "num_processes", "program", "changes"),
    [
        (
            "Muon on a whitened airbench94, small images first",
            1,
            TRAIN,
            {
                "model": "airbench94",
                "whitening": True,
                "identity_init": True,
                "norm_scale": False,
                "optimizer": "muon",
                "low_res_fraction": 0.5,
            },
        ),
        ("two processes", 2, TRAIN, {}),
        (
            "averaged weights, Albumentations in two workers",
            1,
            TRAIN,
            {"ema_decay": 0.9, "augment_backend": "albumentations", "num_workers": 2},
        ),
        (
            "adamw, accumulation, kills inside a save",
            1,
            (PLANTED, "slow_save"),
            {"optimizer": "adamw", "max_lr": 0.01, "grad_accum_steps": 2},
        ),
    ],
)
def test_twenty_kills(
    name: str,
    num_processes: int,
    program: tuple[str, ...],
    changes: dict[str, Any],
    tmp_path: Path,
    fault: OpenFault,
    count: Count,
    straight: Straight,
) -> None:
    """Five for each kind of run, at random steps (or at a random moment of the next save)."""
    args = flags(SLOWER | OFTEN | changes)
    moments = random.Random(f"{SEED} {name}")
    killed = tmp_path / "killed"
    with fault(f"five random kill -9: {name}", expected="ends with the same bits as a straight run", code=0) as ended:
        for number in range(5):
            step = moments.randint(15 * number + 1, 15 * number + 9)
            with started(tmp_path, *args, "--run-dir=killed", program=program, num_processes=num_processes) as process:
                wait_for_step(process, killed, step)
                if program != TRAIN:
                    wait_until(process, lambda: any(killed.glob("checkpoints/*.tmp")))
                time.sleep(moments.uniform(0, 0.03 if program == TRAIN else 1.2))
                assert process.poll() is None
                kill(process)
            count("kills", 1)
            count("of them inside a save", len(list(killed.glob("checkpoints/*.tmp"))))
        ended(run_python(*TRAIN, *args, "--run-dir=killed", cwd=tmp_path, num_processes=num_processes), "resuming from")
        count("bits compared", assert_same_bits(straight(SLOWER | changes, num_processes=num_processes), killed))
        assert_every_step_logged_once(killed)
        assert not list(killed.glob("checkpoints/*.tmp"))


@pytest.mark.long
def test_a_kill_after_the_last_save_and_a_finished_run(
    tmp_path: Path, fault: OpenFault, count: Count, straight: Straight
) -> None:
    run = tmp_path / "run"
    args = flags(TINY | {"run_dir": run})
    with fault("kill -9 between last save and results", expected="trains nothing more, writes them", code=0) as ended:
        with started(tmp_path, *args, program=(PLANTED, "slow_results")) as process:
            wait_until(process, lambda: (run / "checkpoints" / "step-000018").exists())
            kill(process)
        count("kills", 1)
        assert not (run / "summary.json").exists()
        ended(run_python(*TRAIN, *args, cwd=tmp_path), "step-000018")
        count("bits compared", assert_same_bits(straight(TINY), run))
    with fault("the command of a finished run", expected="ends at once, no file changes", code=0) as ended:
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
        ended(run_python(*TRAIN, *args, cwd=tmp_path), "is finished: nothing to train")
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
        assert [path.name for path in after if after[path] != before.get(path)] in ([], ["settings.yaml"])
        assert before.keys() == after.keys()
