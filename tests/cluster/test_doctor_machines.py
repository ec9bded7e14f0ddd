"""doctor under a launcher on two hosts: addresses, network, versions, clocks and a shared disk."""

import sys
from collections.abc import Iterator

import pytest
from cluster_hosts import LOCAL_DISK, Command, Hosts
from cluster_launch import ENVIRONMENT, MACHINES, SMALL, exit_codes
from training_commands import flags

LAUNCHER = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1")


@pytest.fixture
def machines(hosts: Hosts) -> Iterator[Hosts]:
    """The hosts, of which nodea and nodeb are switched off and on again after each test."""
    yield hosts
    for name in MACHINES:
        hosts[name].power_off()
        hosts[name].restore()


def _examine(machines: Hosts, **settings: object) -> list[Command]:
    words = ["-m", "cifar10_accel", "doctor", *flags(SMALL | {"collective_timeout": 30} | settings)]
    started = [
        machines[name].start(sys.executable, *LAUNCHER, "--node-rank", str(rank), *words, **ENVIRONMENT)
        for rank, name in enumerate(MACHINES)
    ]
    for command in started:
        command.wait()
    return started


def test_correct_machines_pass(machines: Hosts) -> None:
    first, second = _examine(machines, run_dir=machines.folder / "run")
    assert (first.poll(), second.poll()) == (0, 0), first.output()
    assert "machines: nodea at 10.77.0.1, nodeb at 10.77.0.2" in first.output()
    assert "network: each machine reaches the others at random ports (nodea:" in first.output()
    assert "on 2 machines" in first.output()
    assert "clocks: they differ by at most" in first.output()
    assert f"shared disk: all ranks see what rank 0 writes to {machines.folder}" in first.output()
    assert not list(machines.folder.glob(".doctor-*"))


def test_a_run_folder_on_a_local_disk_is_an_error(machines: Hosts) -> None:
    first, _ = _examine(machines, run_dir=LOCAL_DISK / "run")
    assert f"shared disk: nodeb cannot see what nodea writes to {LOCAL_DISK}" in first.output()
    assert exit_codes(first) == {2}


def test_a_loopback_name_is_an_error(machines: Hosts) -> None:
    machines["nodeb"].write_etc_hosts("127.0.1.1 nodeb", "10.77.0.1 nodea")
    first, _ = _examine(machines, run_dir=machines.folder / "run")
    assert "nodeb resolves its own name to 127.0.1.1" in first.output()
    assert exit_codes(first) == {2}
