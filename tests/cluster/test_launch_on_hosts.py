"""Starts of a training on two hosts: ranks that disagree, and machines that do not reach each other."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_hosts import LOCAL_DISK, Hosts
from cluster_launch import MACHINES, errors, exit_codes, run_on_both, start_accelerate, start_torchrun, status

NEW_CONNECTIONS = "tcp flags & (syn|ack) == syn"


@pytest.fixture
def machines(hosts: Hosts) -> Iterator[Hosts]:
    """The hosts, of which nodea and nodeb are switched off and on again after each test."""
    yield hosts
    for name in MACHINES:
        hosts[name].power_off()
        hosts[name].restore()


@pytest.mark.parametrize(
    ("different", "line"),
    [
        ({"max_lr": 0.05}, "max_lr is 0.05 for rank 1 on nodeb but 0.2 for rank 0 on nodea"),
        ({"max_steps": 7}, "max_steps is 7 for rank 1 on nodeb but None for rank 0 on nodea"),
        ({"precision": "fp16"}, "precision is fp16 for rank 1 on nodeb but no for rank 0 on nodea"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_host_with_another_setting_is_refused_on_all(
    different: dict[str, object], line: str, machines: Hosts, tmp_path: Path
) -> None:
    shared = {"run_dir": machines.folder / tmp_path.name, "collective_timeout": 60}
    for ended in run_on_both(machines, shared, shared | different):
        assert errors(ended) == [f"error: launch: {line}; give every machine the same"]
        assert exit_codes(ended) == {2}
    assert not (machines.folder / tmp_path.name).exists()


def test_a_setting_from_the_environment_of_one_host_counts_too(machines: Hosts) -> None:
    shared = {"run_dir": machines.folder / "environment", "collective_timeout": 60}
    started = [
        start_accelerate(machines["nodea"], shared),
        start_accelerate(machines["nodeb"], shared, CIFAR10_ACCEL_SEED="7"),
    ]
    for command in started:
        assert command.wait() == 1
        assert errors(command) == [
            "error: launch: seed is 7 for rank 1 on nodeb but 0 for rank 0 on nodea; give every machine the same"
        ]


def test_a_checkpoint_that_is_not_on_a_shared_disk_is_refused_on_all(machines: Hosts) -> None:
    local = {"run_dir": LOCAL_DISK / "run", "collective_timeout": 60}
    first = run_on_both(machines, local | {"max_steps": 5}, local | {"max_steps": 5})  # only rank 0 writes
    assert [command.poll() for command in first] == [0, 0], first[0].output()
    disks = {name: machines.folder / "hosts" / name / "disk" for name in MACHINES}
    (checkpoint,) = disks["nodea"].glob("run/checkpoints/step-*")
    path = LOCAL_DISK / "run" / "checkpoints" / checkpoint.name

    def refuse(what: str) -> None:
        for ended in run_on_both(machines, local, local):
            (line,) = errors(ended)
            assert line.startswith(f"error: run_dir: rank 1 on nodeb sees {what}")
            assert f" at {path} where rank 0 on nodea has " in line
            assert exit_codes(ended) == {3}

    refuse("no checkpoint")
    other = machines.folder / "other"
    stale = {"run_dir": other, "max_lr": 0.01, "max_steps": 5}
    assert [command.poll() for command in run_on_both(machines, stale, stale)] == [0, 0]
    shutil.copytree(other, disks["nodeb"] / "run")
    refuse("another checkpoint (")


def test_a_host_that_knows_itself_by_a_loopback_address_is_named(machines: Hosts) -> None:
    machines["nodea"].write_etc_hosts("127.0.1.1 nodea", "10.77.0.2 nodeb")
    shared = {"run_dir": machines.folder / "loopback", "collective_timeout": 60}
    started = time.monotonic()
    for ended in run_on_both(machines, shared, shared):
        (line,) = errors(ended)
        assert line.startswith("error: launch: nodea resolves its own name to 127.0.1.1, where other machines cannot")
        assert exit_codes(ended) == {2}
    assert time.monotonic() - started < 60
    named = run_on_both(machines, shared, shared, GLOO_SOCKET_IFNAME="eth0")
    assert [command.poll() for command in named] == [0, 0]


def test_a_firewall_that_lets_only_the_launchers_port_through_is_named(machines: Hosts) -> None:
    timeout = 20
    shared = {"run_dir": machines.folder / "firewall", "collective_timeout": timeout}
    machines["nodea"].drop_incoming(f"tcp dport != 29500 {NEW_CONNECTIONS}")
    started = [start_accelerate(machines[name], shared) for name in MACHINES]
    for command in started:
        assert command.wait(timeout + 40) == 1  # importing, and the launcher's own end
        (line,) = errors(command)
        assert line.startswith(f"error: launch: the processes do not connect within {timeout} s (collective_timeout): ")
        assert "nodeb does not reach nodea at 10.77.0.1 port " in line
        assert exit_codes(command) == {6}


def test_a_rank_that_never_joins_is_missed_in_time(machines: Hosts) -> None:
    shared = {"run_dir": machines.folder / "missing", "collective_timeout": 15}
    started = [
        start_accelerate(machines["nodea"], shared),
        start_accelerate(machines["nodeb"], shared | {"epochs": 0}),  # refused before it joins
    ]
    assert started[1].wait() == 1
    assert exit_codes(started[1]) == {2}
    assert started[0].wait(60) == 1
    (line,) = errors(started[0])
    assert line.startswith("error: launch: no process has joined as rank 1 of 2 within 15 s (collective_timeout)")
    assert exit_codes(started[0]) == {6}


def test_a_launcher_with_a_timeout_does_not_wait_for_a_machine_that_is_off(machines: Hosts) -> None:
    machines["nodeb"].cut_cable()
    shared = {"run_dir": machines.folder / "off"}
    started = time.monotonic()
    command = start_torchrun(machines["nodea"], shared, "--rdzv-conf", "join_timeout=15")
    assert command.wait(90) != 0
    assert time.monotonic() - started < 60
    assert not (machines.folder / "off").exists()


def test_a_start_on_two_hosts_finishes(machines: Hosts) -> None:
    run = machines.folder / "plain"
    shared = {"run_dir": run}
    assert [command.poll() for command in run_on_both(machines, shared, shared)] == [0, 0]
    assert status(run) == {"state": "finished", "exit_code": 0, "reason": ""}
    for name in MACHINES:  # nothing is left on the hosts
        assert [process.cmdline() for process in machines[name].processes("cifar10_accel")] == []
