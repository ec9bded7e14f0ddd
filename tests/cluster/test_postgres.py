"""Sweeps whose runners on three hosts share nothing but PostgreSQL: none of their trials is lost, whatever dies."""

import csv
import math
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cluster_hosts import LOCAL_DISK, Command, Host, Hosts
from cluster_postgres import PASSWORD, Postgres, need_postgres
from training_commands import REPOSITORY

# The command line with a substitute for the training, and with other values of some limits.
PROGRAM = (
    "import sys\n"
    "from cifar10_accel.sweep import database, owners, trial_process\n"
    "owners.RECORD_SECONDS, owners.SILENCE_SECONDS = 1, 8\n"
    "database.WAIT_SECONDS, database.OPEN_SECONDS = {wait_seconds}, 2\n"
    f"training = {str(REPOSITORY / 'tests' / 'support' / 'sweep_training.py')!r}\n"
    "trial_process.training_command = lambda flags, num_processes: [sys.executable, training, *flags]\n"
    "from cifar10_accel.cli import main\n"
    "main()"
)


@pytest.fixture(scope="module")
def postgres(hosts: Hosts) -> Iterator[Postgres]:
    """The server on the host `head`."""
    need_postgres()
    server = Postgres(hosts["head"])
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _folder_of_all_hosts(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands on hosts start in a folder that the hosts have too."""
    monkeypatch.chdir(hosts.folder)


@pytest.fixture
def sweep_file(hosts: Hosts, request: pytest.FixtureRequest) -> Path:
    """A random search of 24 LRs, with a name of its own in the database."""
    name = re.sub(r"\W", "-", request.node.name)
    constants = {"recipe": "smoke", "val_size": 40, "synthetic_size": 400, "epochs": 5, "peak_epoch": 1}
    content = {
        "name": name,
        "method": "random",
        "run_cap": 24,
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {"max_lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 10.0}}
        | {key: {"value": value} for key, value in constants.items()},
    }
    path = hosts.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# What the driver says of a server that is killed: depends on whether the first message was already under way.
REAL_REASON = r"does not answer \(.*(Connection refused|server closed the connection|Connection reset)"


def start(host: Host, *arguments: str | Path, wait_seconds: float = 120, **environment: str) -> Command:
    """Start `cifar10-accel sweep` on a host, in the folder of its own disk."""
    program = PROGRAM.format(wait_seconds=wait_seconds)
    settings = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "FAKE_EPOCH_SECONDS": "0.3"}
    words = ["env", f"--chdir={LOCAL_DISK}", sys.executable, "-c", program, "sweep", *arguments]
    return host.start(*words, **settings | environment)


def wait_for_trials(command: Command, number: int) -> None:
    """Wait until a runner has finished so many trials."""
    until = time.monotonic() + 120
    while len(re.findall(r"^trial \d+ finished", command.output(), flags=re.M)) < number:
        assert time.monotonic() < until, command.output()
        assert command.poll() is None, command.output()
        time.sleep(0.1)


def command_lines() -> Iterator[str]:
    """Yield the command lines that `ps` shows."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended
            yield " ".join(process.cmdline())


def read_on(host: Host, path: Path) -> str:
    """Return a file on the disk of a host."""
    done: Any = host.run("cat", path)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_24_trials_survive_a_power_cut_of_a_host_and_a_restart_of_the_database(
    hosts: Hosts, postgres: Postgres, sweep_file: Path, request: pytest.FixtureRequest
) -> None:
    """Three runners; one host loses its power for good, then the database is killed and is back after eight seconds."""
    names, url = ("nodea", "nodeb", "head"), postgres.url_with_password
    runners = {name: start(hosts[name], "run", sweep_file, OPTUNA_STORAGE=url) for name in names}
    for runner in runners.values():
        wait_for_trials(runner, 1)
    request.addfinalizer(hosts["nodeb"].restore)  # other tests use it too
    hosts["nodeb"].power_off()
    wait_for_trials(runners["nodea"], 3)
    postgres.kill()
    time.sleep(8)
    postgres.start()
    outputs = {}
    for name in ("nodea", "head"):
        assert runners[name].wait() == 0, runners[name].output()
        outputs[name] = runners[name].output()
        assert outputs[name].count("does not answer (") == outputs[name].count("answers again, after") == 1, outputs[
            name
        ]
        assert re.search(REAL_REASON, outputs[name]), outputs[name]
    assert sum(output.count("continues: max_lr") for output in outputs.values()) <= 1

    folder = LOCAL_DISK / "runs" / "sweeps" / sweep_file.stem
    reported = start(hosts["head"], "report", folder, OPTUNA_STORAGE=url)
    assert reported.wait() == 0, reported.output()
    rows = list(csv.DictReader(read_on(hosts["head"], folder / "results.csv").splitlines()))
    assert {row["state"] for row in rows} == {"finished"}
    assert len(rows) == len({row["trial"] for row in rows}) == len({row["max_lr"] for row in rows}) == 24
    expected = {row["trial"]: 0.5 / (1 + abs(math.log10(float(row["max_lr"]) / 0.1))) for row in rows}
    assert {row["trial"]: float(row["val/accuracy"]) for row in rows} == pytest.approx(expected, abs=1e-6)
    best = max(rows, key=lambda row: float(row["val/accuracy"]))
    recipe = yaml.safe_load(read_on(hosts["head"], folder / "best.yaml"))
    assert recipe["max_lr"] == pytest.approx(float(best["max_lr"]))
    page = read_on(hosts["head"], folder / "sweep.html")
    assert f"{float(best['val/accuracy']):.2%}" in page
    assert PASSWORD not in page + "".join(outputs.values())


def test_a_trial_of_a_killed_runner_is_continued_by_the_others_only_once(
    hosts: Hosts, postgres: Postgres, sweep_file: Path
) -> None:
    """Two runners find it without a sign of life at about the same time."""
    url = postgres.url_with_password
    dead = start(hosts["nodeb"], "run", sweep_file, "--trials=3", OPTUNA_STORAGE=url, FAKE_EPOCH_SECONDS="60")
    dead.wait_for("trial 0 starts")
    others = [start(hosts[name], "run", sweep_file, "--trials=3", OPTUNA_STORAGE=url) for name in ("nodea", "head")]
    for other in others:
        other.wait_for("starts: max_lr")
    dead.kill()
    for other in others:
        assert other.wait() == 0, other.output()
    outputs = [other.output() for other in others]
    assert sum(output.count("trial 0 starts") for output in outputs) == 1, outputs
    assert sum(output.count("without a sign of life") for output in outputs) >= 1
    assert any("3 of 3 done" in output for output in outputs)


def test_a_runner_that_is_alive_keeps_its_trial(hosts: Hosts, postgres: Postgres, sweep_file: Path) -> None:
    """Another runner, with nothing to do, ends as soon as it has seen a sign of life."""
    url = postgres.url_with_password
    slow = start(hosts["nodeb"], "run", sweep_file, "--trials=1", OPTUNA_STORAGE=url, FAKE_EPOCH_SECONDS="4")
    slow.wait_for("trial 0 starts")
    idle = start(hosts["nodea"], "run", sweep_file, "--trials=1", OPTUNA_STORAGE=url)
    assert idle.wait() == 0, idle.output()
    assert slow.poll() is None
    assert "trial 0" not in idle.output()
    assert slow.wait() == 0, slow.output()
    assert "trial 0 finished" in slow.output()


def test_a_database_that_stays_away_ends_the_runner_with_its_real_reason(
    hosts: Hosts, postgres: Postgres, sweep_file: Path
) -> None:
    runner = start(hosts["nodea"], "run", sweep_file, OPTUNA_STORAGE=postgres.url_with_password, wait_seconds=4)
    wait_for_trials(runner, 1)
    postgres.kill()
    try:
        assert runner.wait(60) == 5, runner.output()
    finally:
        postgres.start()
    assert re.search(
        r"error: storage: .*Connection refused.*; when it is back, the same command continues", runner.output()
    )
    assert "Traceback" not in runner.output()
    assert "during the commit" not in runner.output()
    assert not hosts["nodea"].processes("sweep_training.py")
    url = postgres.url_with_password.replace("postgresql://", "postgres://")
    again = start(hosts["nodea"], "run", sweep_file, "--trials=2", OPTUNA_STORAGE=url)
    assert again.wait() == 0, again.output()
    assert "2 of 2 done" in again.output()


def test_a_stop_signal_ends_the_wait_for_a_database(hosts: Hosts, postgres: Postgres, sweep_file: Path) -> None:
    runner = start(hosts["nodea"], "run", sweep_file, OPTUNA_STORAGE=postgres.url_with_password)
    wait_for_trials(runner, 1)
    postgres.kill()
    try:
        runner.wait_for("does not answer")
        (process,) = (one for one in hosts["nodea"].processes("sweep run") if "-c" in one.cmdline())
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert runner.wait(60) == 143, runner.output()
        assert time.monotonic() - started < 15
        assert "stopped while the storage does not answer, all trainings saved" in runner.output()
    finally:
        postgres.start()
    assert not hosts["nodea"].processes("sweep_training.py")


@pytest.mark.parametrize("way", ["pgpass", "typed"])
def test_passwords_are_shown_nowhere(
    way: str, hosts: Hosts, postgres: Postgres, sweep_file: Path, tmp_path: Path
) -> None:
    """But in `ps` if it is typed, which is said."""
    environment, arguments = {"HOME": str(hosts.folder)}, ["run", sweep_file, "--trials=2", f"--dir={way}"]
    if way == "pgpass":
        (hosts.folder / ".pgpass").write_text(f"head:5432:sweep:sweep:{PASSWORD}\n")
        (hosts.folder / ".pgpass").chmod(0o600)
        arguments.append(f"--storage={postgres.url}")
    else:
        arguments.append(f"--storage={postgres.url_with_password}")
    runner = start(hosts["nodea"], *arguments, FAKE_EPOCH_SECONDS="0.6", **environment)
    runner.wait_for("trial 0 starts")
    time.sleep(1)
    shown = list(command_lines())
    assert any("sweep_training.py" in line for line in shown)
    assert any(PASSWORD in line for line in shown) == (way == "typed")
    assert ("`ps` shows the password" in runner.output()) == (way == "typed")
    assert runner.wait() == 0, runner.output()
    assert PASSWORD not in runner.output()
    found = hosts["nodea"].run("grep", "-rl", PASSWORD, LOCAL_DISK / way)
    assert (found.returncode, found.stdout) == (1, "")
    (hosts.folder / ".pgpass").unlink(missing_ok=True)


def test_a_wrong_password_is_one_line(hosts: Hosts, postgres: Postgres, sweep_file: Path) -> None:
    wrong = postgres.url_with_password.replace(PASSWORD, "an0ther-one")
    runner = start(hosts["nodea"], "run", sweep_file, OPTUNA_STORAGE=wrong)
    assert runner.wait() == 2, runner.output()
    assert 'password authentication failed for user "sweep"' in runner.output().splitlines()[-1]
    assert "an0ther-one" not in runner.output()
