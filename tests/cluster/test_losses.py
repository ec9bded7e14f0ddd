"""Processes and hosts that are lost in the middle of a training: the others end in words, and resume the same bits."""

import time
from collections.abc import Iterator

import pytest
from cluster_hosts import Command, Hosts
from cluster_launch import (
    MACHINES,
    errors,
    exit_codes,
    run_on_both,
    start_accelerate,
    start_torchrun,
    status,
    wait_for_checkpoint,
    weights,
    worker_processes,
)

TRAINING = {"epochs": 12, "checkpoint_every": 0.5, "collective_timeout": 60}
NEVER_ENDING = TRAINING | {"epochs": 2000, "collective_timeout": 15}


@pytest.fixture
def machines(hosts: Hosts) -> Iterator[Hosts]:
    """The hosts, of which nodea and nodeb are switched off and on again after each test."""
    yield hosts
    for name in MACHINES:
        hosts[name].power_off()
        hosts[name].restore()


@pytest.fixture(scope="module")
def uninterrupted(hosts: Hosts) -> str:
    """The digest of the weights of a run on both hosts that nothing has stopped."""
    run = hosts.folder / "uninterrupted"
    ended = run_on_both(hosts, TRAINING | {"run_dir": run}, TRAINING | {"run_dir": run})
    assert [command.poll() for command in ended] == [0, 0], [command.output() for command in ended]
    return weights(run)


def _lose(command: Command, lost: str, machines: Hosts, run: str) -> None:
    assert command.wait(60) == 1
    (line,) = errors(command)
    assert line.startswith(f"error: a process of {lost} ")
    assert "; start the same command on all machines again" in line
    assert exit_codes(command) == {6}
    assert "Traceback" not in command.output().split("error: ")[0]
    if command.log.parent.name == "nodea":  # rank 0 records the status
        found = status(machines.folder / run)
        assert (found["state"], found["exit_code"], f"error: {found['reason']}") == ("failed", 6, line)


@pytest.mark.parametrize("lost", MACHINES)
def test_a_host_without_power_is_named_and_a_new_start_resumes_the_same_bits(
    lost: str, machines: Hosts, uninterrupted: str
) -> None:
    run = machines.folder / f"power-{lost}"
    settings = TRAINING | {"run_dir": run}
    started = {name: start_accelerate(machines[name], settings) for name in MACHINES}
    wait_for_checkpoint(run, list(started.values()))
    machines[lost].power_off()
    for name in MACHINES:
        if name != lost:
            _lose(started[name], lost, machines, run.name)
    machines[lost].boot()
    again = run_on_both(machines, settings, settings)
    assert [command.poll() for command in again] == [0, 0]
    assert "resuming from" in again[0].output()
    assert weights(run) == uninterrupted


@pytest.mark.parametrize("lost", MACHINES)
def test_torchrun_restarts_both_hosts_when_a_process_of_either_is_killed(
    lost: str, machines: Hosts, uninterrupted: str
) -> None:
    run = machines.folder / f"c10d-{lost}"
    settings = TRAINING | {"run_dir": run}
    started = [start_torchrun(machines[name], settings, "--max-restarts", "2") for name in MACHINES]
    wait_for_checkpoint(run, started)
    for process in worker_processes(machines[lost]):
        process.kill()
    assert [command.wait(200) for command in started] == [0, 0]
    assert any("resuming from" in command.output() for command in started)
    assert weights(run) == uninterrupted


def test_accelerate_restarts_both_hosts_when_a_process_of_the_second_is_killed(
    machines: Hosts, uninterrupted: str
) -> None:
    run = machines.folder / "static"
    settings = TRAINING | {"run_dir": run}
    started = [start_accelerate(machines[name], settings, options=("--max_restarts", "2")) for name in MACHINES]
    wait_for_checkpoint(run, started)
    for process in worker_processes(machines["nodeb"]):
        process.kill()
    assert [command.wait(200) for command in started] == [0, 0]
    assert weights(run) == uninterrupted


def test_a_cut_cable_ends_both_within_the_timeout(machines: Hosts) -> None:
    run = machines.folder / "cable"
    settings = NEVER_ENDING | {"run_dir": run}
    started = [start_accelerate(machines[name], settings) for name in MACHINES]
    wait_for_checkpoint(run, started)
    machines["nodeb"].cut_cable()
    cut = time.monotonic()
    _lose(started[0], "nodeb", machines, run.name)
    _lose(started[1], "nodea", machines, run.name)
    assert time.monotonic() - cut < 60


@pytest.mark.parametrize("hung", MACHINES)
def test_a_process_that_hangs_is_ended_with_its_launcher(hung: str, machines: Hosts) -> None:
    run = machines.folder / f"hung-{hung}"
    settings = NEVER_ENDING | {"run_dir": run}
    started = {name: start_accelerate(machines[name], settings) for name in MACHINES}
    wait_for_checkpoint(run, list(started.values()))
    for process in worker_processes(machines[hung]):
        process.suspend()
    for name in MACHINES:
        if name != hung:
            _lose(started[name], hung, machines, run.name)
    assert started[hung].wait(60) == 1
    assert exit_codes(started[hung]) == {-9}
