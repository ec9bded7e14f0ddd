"""Agreement of the ranks before they train, the id of a start, and errors of the communication in words."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore
from training_commands import REPOSITORY, TINY, flags, run_python

from cifar10_accel.errors import LostPeerError
from cifar10_accel.training.launch import joining
from cifar10_accel.training.launch.hang_guard import HangGuard, tell_guards
from cifar10_accel.training.launch.joining import Launch, Member
from cifar10_accel.training.launch.lost_peer import explain_lost_peer

# Rank 1 differs from rank 0 in what the test says.
DIFFERENT = """
import os, sys
if os.environ["RANK"] == "1":
    exec(sys.argv.pop(1))
else:
    del sys.argv[1]
from cifar10_accel.cli import main
main(["train", *sys.argv[1:]], prog_name="cifar10-accel")
"""


def _train_differently(difference: str, folder: Path) -> list[str]:
    (folder / "different.py").write_text(DIFFERENT)
    arguments = flags(TINY | {"run_dir": folder / "run", "max_steps": 3, "collective_timeout": 60})
    done = run_python("different.py", difference, *arguments, cwd=folder, num_processes=2)
    assert done.returncode == 1
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("difference", "line"),
    [
        ("os.environ['CIFAR10_ACCEL_TTA'] = 'flip'", "tta is flip for rank 1 on HOST but none for rank 0 on HOST"),
        ("sys.argv += ['--weight-decay', '0.1']", "weight_decay is 0.1 for rank 1 on HOST but "),
        (
            "import cifar10_accel; cifar10_accel.__version__ = '0.0'",
            "cifar10_accel is 0.0 for rank 1 on HOST but ",
        ),
    ],
    ids=["environment", "flag", "version"],
)
def test_a_rank_that_differs_ends_the_start_in_one_line(difference: str, line: str, tmp_path: Path) -> None:
    (found,) = _train_differently(difference, tmp_path)
    assert found.startswith(f"error: launch: {line.replace('HOST', os.uname().nodename)}")
    assert found.endswith("; give every machine the same")
    assert not (tmp_path / "run").exists()


def test_what_may_differ_between_machines_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "different.py").write_text(DIFFERENT)
    difference = f"sys.argv += ['--num-workers=1', '--data-dir=elsewhere', '--run-dir={tmp_path / 'ignored'}']"
    arguments = flags(TINY | {"run_dir": tmp_path / "run", "max_steps": 3})
    done = run_python("different.py", difference, *arguments, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ignored").exists()


def _member(rank: int, token: str, host: str = "nodea") -> Member:
    return Member(token, rank, 1, host, "127.0.1.1", f"10.77.0.{rank + 1}")


def test_ranks_agree_on_a_start_although_the_store_remembers_an_earlier_one() -> None:
    store = HashStore()
    old = json.dumps(vars(_member(1, "token of a rank that is gone")))
    for rank in (1, 2):
        store.set(f"join/{rank}", old)
    found: dict[int, tuple[str, tuple[Member, ...]]] = {}

    def join(rank: int) -> None:
        found[rank] = joining._meet(store, _member(rank, f"new {rank}"), 3, timedelta(seconds=30))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]
    assert [member.token for member in found[0][1]] == ["new 0", "new 1", "new 2"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_alone_ends_in_time(rank: int) -> None:
    with pytest.raises(LostPeerError, match=r"within 0\.3 s"):
        joining._meet(HashStore(), _member(rank, "alone"), 2, timedelta(seconds=0.3))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error [10.77.0.2]:23751: Connection reset by peer."),
            "a process of nodeb is gone; start the same command on all machines again",
        ),
        (
            RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 20000ms for recv"),
            r"a process of nodeb has not answered within 20 s \(collective_timeout\)",
        ),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "a process of nodeb is gone"),
    ],
    ids=["gone", "hung", "nccl"],
)
def test_errors_of_the_communication_name_the_host(
    error: RuntimeError, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "nodea")
    launch = Launch("start", (_member(0, "a"), _member(1, "b", "nodeb")), 0, timedelta(seconds=20))
    with pytest.raises(LostPeerError, match=line), explain_lost_peer(launch):
        raise error


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="shape") as caught, explain_lost_peer(None):
        raise RuntimeError("shape mismatch")
    assert type(caught.value) is RuntimeError


def test_the_guard_ends_a_process_that_hangs_but_only_by_its_word() -> None:
    hung = subprocess.Popen(["sleep", "60"])
    guard = HangGuard.start("127.0.0.1")
    assert guard is not None
    here = Member("a", 0, hung.pid, "nodea", "", "127.0.0.1", guard.port)
    other = Member("b", 1, os.getpid(), "nodeb", "", "127.0.0.1")
    launch = Launch("the word", (here, other), 0, timedelta(seconds=0.2))
    guard.watch(launch)
    tell_guards(replace(launch, start="not the word", rank=1))
    with pytest.raises(subprocess.TimeoutExpired):
        hung.wait(1)
    tell_guards(replace(launch, rank=1))
    assert hung.wait(10) == -signal.SIGKILL
    guard._process.wait(10)  # it ends with what it guards


def test_the_guard_needs_no_package() -> None:
    source = (REPOSITORY / "cifar10_accel/training/launch/hang_guard.py").read_text()
    imported = [line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert set(imported) <= sys.stdlib_module_names
