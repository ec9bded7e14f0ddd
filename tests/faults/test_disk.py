"""A full disk: saved files stay complete, and training goes on until its last checkpoint fails."""

import resource
from pathlib import Path

import pytest
from fault_table import Count, OpenFault, Straight
from training_commands import TINY, flags, run_python
from trainings import TRAIN, assert_same_bits, finished, started, status_of

from cifar10_accel.runs import checkpoint

PLANTED = str(Path(__file__).parent.parent / "support" / "planted.py")
LARGEST_FILE = 20_000  # bytes: metrics fit, weights do not


@pytest.mark.long
def test_disk_full_while_saving(tmp_path: Path, fault: OpenFault, count: Count, straight: Straight) -> None:
    """Simulated by a limit on the size of files, which needs no privileges."""
    args = flags(TINY)
    run = tmp_path / "run"
    assert run_python(PLANTED, "nan_pixels@9", *args, "--run-dir=run", cwd=tmp_path).returncode == 4  # leaves one
    with fault(
        "disk full in every save", expected="warns, goes on; the last save fails it; old ones whole", code=5
    ) as ended:
        full = (LARGEST_FILE, LARGEST_FILE)
        limited = started(
            tmp_path, *args, "--run-dir=run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, full)
        )
        with limited as process:
            done = finished(process)
        ended(done, "cannot be saved", "training goes on", "step-000018: cannot be saved")
        assert [line[:7] for line in done.stderr.splitlines()] == ["warning", "error: "]
        assert (status_of(run)["state"], status_of(run)["exit_code"]) == ("failed", 5)
        names = [path.name for path in sorted((run / "checkpoints").iterdir())]
        assert names == ["step-000006"]
        assert checkpoint.newest(run / "checkpoints") == run / "checkpoints" / "step-000006"
    with fault("room again after a full disk", expected="the same command ends with the same bits", code=0) as ended:
        ended(run_python(*TRAIN, *args, "--run-dir=run", cwd=tmp_path), "resuming from run/checkpoints/step-000006")
        count("bits compared", assert_same_bits(straight(TINY), run))
