"""Missing or damaged data: exit code 3 and a line with the file, what was expected and found, and the remedy.

tests/data has faulty servers, concurrent and killed downloads, each kind of damage, and image files.
"""

from pathlib import Path

import pytest
from fault_table import OpenFault
from training_commands import TINY, flags, run_python
from trainings import TRAIN

DATA = ("-m", "cifar10_accel", "data")
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta")


def test_no_network_and_no_data(tmp_path: Path, fault: OpenFault) -> None:
    with fault("no data and no network", expected="one line with the steps to take by hand", code=3) as ended:
        done = run_python(*DATA, "fetch", "--data-dir=here", cwd=tmp_path, **OFFLINE)
        ended(done, "get https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "and put it into here")
        assert done.stderr.count("\n") == 1
        assert [path.name for path in (tmp_path / "here").iterdir()] == [".fetch.lock"]
    with fault("data verify without data", expected="one line with the command that fetches", code=3) as ended:
        ended(run_python(*DATA, "verify", "--data-dir=here", cwd=tmp_path), "cifar10-accel data fetch --data-dir here")


def test_damaged_files(tmp_path: Path, fault: OpenFault) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    with fault("archive truncated", expected="expected and found digest; nothing is unpacked", code=3) as ended:
        done = run_python(*DATA, "fetch", "--data-dir=here", cwd=tmp_path, **OFFLINE)
        ended(done, "cifar-10-python.tar.gz: damaged, MD5 is", "expected c58f30108f718f92721af3b95e74349a")
        assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [".fetch.lock", "cifar-10-python.tar.gz"]
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in BATCHES:
        (folder / name).write_bytes(b"not a batch")
    with fault("batch file damaged", expected="file, expected and found digest, remedy", code=3) as ended:
        done = run_python(*DATA, "verify", "--data-dir=cifar", cwd=tmp_path)
        ended(
            done, "data_batch_1: damaged, MD5 is", "expected c99cafc1", "(11 bytes)", "run `cifar10-accel data fetch`"
        )
    (folder / "data_batch_1").unlink()
    with fault("batch file missing", expected="file and remedy", code=3) as ended:
        done = run_python(*DATA, "verify", "--data-dir=cifar", cwd=tmp_path)
        ended(done, "data_batch_1: cannot be read", "run `cifar10-accel data fetch`")


@pytest.mark.long
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
def test_training_on_damaged_files(dataset: str, tmp_path: Path, fault: OpenFault) -> None:
    """Also with `auto`, which must not replace a damaged data set by the synthetic one."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in BATCHES:
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"not a batch")
    with fault(
        f"training on damaged files, --dataset={dataset}", expected="one line that names the file", code=3
    ) as ended:
        done = run_python(*TRAIN, *flags(TINY | {"dataset": dataset, "data_dir": tmp_path}), cwd=tmp_path)
        ended(done, "data_batch_1: damaged")
        assert done.stderr.count("\n") == 1
