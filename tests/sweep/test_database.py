"""A database as storage: its URL, the wait for one that does not answer, and the trials of runners that are gone."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import yaml
from click.testing import CliRunner
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from training_commands import REPOSITORY

from cifar10_accel.cli import main
from cifar10_accel.errors import SettingsError
from cifar10_accel.sweep import database, owners
from cifar10_accel.sweep.claimed_trial import ClaimedTrial
from cifar10_accel.sweep.database import PatientStorage, database_url, open_database
from cifar10_accel.sweep.file import Sweep, read_sweep
from cifar10_accel.sweep.search import Search, read_trials


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A grid of 40 points."""
    constants = {"recipe": "smoke", "val_size": 40, "synthetic_size": 400}
    searched = {"max_lr": {"values": [n / 100 for n in range(1, 21)]}, "momentum": {"values": [0.5, 0.9]}}
    content = {
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": searched | {name: {"value": value} for name, value in constants.items()},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    return read_sweep(tmp_path / "grid.yaml")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an empty database."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds that runners see when they look at each other's trials."""
    now = [1000.0]
    monkeypatch.setattr(owners.time, "monotonic", lambda: now[0])
    return now


def claim(search: Search, num_trials: int = 2) -> ClaimedTrial:
    claimed = search.claim(num_trials=num_trials)
    assert claimed is not None
    return claimed


# --- URLs ---


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_postgres_uses_the_driver_that_is_installed(scheme: str) -> None:
    url = database_url(f"{scheme}://sweep:a%40b@host:5/base")
    assert (url.drivername, url.password, url.host, url.port) == ("postgresql+psycopg", "a@b", "host", 5)
    assert database_url(f"postgresql+psycopg2://sweep@host/{scheme}").drivername == "postgresql+psycopg2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "cannot be read as a URL"),
        ("postgresql://sweep@s3cret:s3cret/base", "cannot be read as a URL"),
        ("postgresql://s3cret:s3cret:s3cret/base", "cannot be read as a URL"),
        ("postgres://sweep:pa@s3cret@host/base", "two @"),
        ("oracel://sweep:s3cret@host/base", "'oracel' is no kind of database"),
    ],
)
def test_a_wrong_url_is_refused_without_showing_its_password(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as refused:
        open_database(text)
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_driver_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys\nsys.modules['psycopg'] = sys.modules['psycopg2'] = None\n"
        "from cifar10_accel.cli import main\nmain()"
    )
    (tmp_path / "s.yaml").write_text((REPOSITORY / "sweeps" / "smoke.yaml").read_text())
    words = [sys.executable, "-c", program, "sweep", "run", "s.yaml", "--storage=postgresql://sweep@host/base"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "psycopg, the driver of PostgreSQL, is not installed; pip install 'cifar10-accel[postgres]'" in line
    with pytest.raises(SettingsError, match=r"the driver of mysql is not installed \(No module named 'MySQLdb'\)"):
        open_database("mysql://host/base")


def test_a_typed_password_is_warned_of_and_one_in_the_environment_is_not(tmp_path: Path) -> None:
    url = f"sqlite://sweep:s3cret@/{tmp_path}/none/study.db"
    for words, environment in ([f"--storage={url}"], {}), ([], {"OPTUNA_STORAGE": url}):
        command = ["sweep", "report", str(tmp_path), *words]
        (tmp_path / "sweep.yaml").write_text((REPOSITORY / "sweeps" / "smoke.yaml").read_text())
        done = CliRunner().invoke(main, command, env=environment)
        assert done.exit_code == 2
        assert ("`ps` shows the password" in done.output) == bool(words)
        assert "s3cret" not in done.output


# --- The wait ---


class Failing:
    """A storage that fails before, or after, it does what it is asked."""

    def __init__(self, storage: Any) -> None:
        self._storage, self.failures, self.is_done_before = storage, list[Exception](), False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            if self.failures and not self.is_done_before:
                raise self.failures.pop()
            result = getattr(self._storage, name)(*args, **kwargs)
            if self.failures:
                raise self.failures.pop()
            return result

        return method


def outage(text: str = "server closed the connection") -> Exception:
    """Return an outage as Optuna reports it."""
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception(text))
    return error


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> tuple[Failing, optuna.storages.BaseStorage, int]:
    """A storage under a patient one, that one, and the id of a running trial in them."""
    monkeypatch.setattr(database, "LONGEST_PAUSE", 0.01)
    below = Failing(optuna.storages.InMemoryStorage())
    patient: Any = PatientStorage
    study = optuna.create_study(storage=patient(below, "the database"), study_name="s")
    return below, study._storage, study._storage.create_new_trial(study._study_id)


def test_an_old_connection_costs_nothing_and_a_restart_two_lines(
    failing: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    below, storage, trial = failing
    below.failures = [outage()]
    storage.set_trial_user_attr(trial, "a", 1)
    assert capfd.readouterr().err == ""
    below.failures = [outage() for _ in range(5)]
    storage.set_trial_user_attr(trial, "b", 2)
    first, second = capfd.readouterr().err.splitlines()
    assert "the database does not answer (server closed the connection); trying again for 10:00" in first
    assert "the database answers again, after" in second
    assert storage.get_trial(trial).user_attrs == {"a": 1, "b": 2}


def test_what_was_recorded_without_an_answer_is_not_recorded_twice(failing: Any) -> None:
    below, storage, trial = failing
    below.is_done_before = True
    for _ in range(2):
        below.failures = [outage() for _ in range(3)]
        storage.set_trial_intermediate_value(trial, 1, 0.5)
    below.failures = [outage()]
    assert storage.set_trial_state_values(trial, optuna.trial.TrialState.COMPLETE, [0.5]) is True
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial, optuna.trial.TrialState.FAIL)
    assert storage.get_trial(trial).value == 0.5


def test_the_wait_ends_at_its_limit_or_when_it_is_told(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    below, storage, _ = failing
    refusal = StorageInternalError("x")
    refusal.__cause__ = sqlalchemy.exc.DataError("SELECT 1", {}, Exception("too long"))
    below.failures = [outage(), refusal]
    with pytest.raises(StorageInternalError):  # it has answered
        storage.get_all_studies()
    assert len(below.failures) == 1
    storage.should_wait = lambda: False
    below.failures = [outage() for _ in range(9)]
    with pytest.raises(StorageInternalError):
        storage.get_all_studies()
    assert len(below.failures) == 7  # after the attempt that an old connection may need
    with pytest.raises(StorageInternalError):  # it has given up, and does not wait again
        storage.get_all_studies()
    assert len(below.failures) == 6


# --- Trials of runners that are gone ---


def test_a_silent_trial_is_taken_over_by_one_runner_under_its_number(
    sweep: Sweep, url: str, clock: list[float], tmp_path: Path
) -> None:
    searches = [Search(sweep, tmp_path / name, storage=url) for name in ("dead", "first", "second")]
    dead = claim(searches[0])
    claim(searches[1]).finish("finished", value=0.5, curve=[(1, 0.5)], seconds=1, reason="")
    for seconds in (0, 60, 29):
        clock[0] += seconds
        assert [search.claim(num_trials=2) for search in searches[1:]] == [None, None]
        assert searches[1].is_undecided()
    clock[0] += 1
    taken = claim(searches[2])
    assert (taken.number, taken.parameters) == (dead.number, dead.parameters)
    assert taken.folder == (tmp_path / "second" / "trial-0000").resolve()
    assert searches[1].claim(num_trials=2) is None
    assert dead.report([0.1], seconds=1) is False  # it is alive after all: the first to end the trial counts
    taken.finish("finished", value=0.7, curve=[(1, 0.7)], seconds=3, reason="")
    clock[0] += owners.RECORD_SECONDS
    assert dead.report([0.1, 0.2], seconds=2) is True
    assert dead.is_lost
    dead.finish("finished", value=0.2, curve=[(2, 0.2)], seconds=2, reason="")
    trials = read_trials(sweep, tmp_path / "first", storage=url)
    assert [(trial.number, trial.state, trial.value) for trial in trials] == [
        (0, "finished", 0.7),
        (1, "finished", 0.5),
    ]
    assert trials[0].where == str(taken.folder)
    assert Search(sweep, tmp_path / "dead", storage=url).claim(num_trials=2) is None


def test_of_two_that_take_a_trial_over_at_once_the_first_gets_it(
    sweep: Sweep, url: str, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have decided before either has entered its marker."""
    first, second = (Search(sweep, tmp_path / name, storage=url) for name in ("first", "second"))
    claim(Search(sweep, tmp_path / "dead", storage=url), 1)
    assert first.claim(num_trials=1) is second.claim(num_trials=1) is None
    clock[0] += owners.SILENCE_SECONDS
    winners: list[ClaimedTrial | None] = []
    plain = owners.new_marker

    def after_the_other(*args: Any) -> Any:
        monkeypatch.setattr(owners, "new_marker", plain)
        winners.append(first.claim(num_trials=1))
        return plain(*args)

    monkeypatch.setattr(owners, "new_marker", after_the_other)
    winners.append(second.claim(num_trials=1))
    assert [None if winner is None else winner.folder.parent.name for winner in winners] == ["first", None]


def test_runners_that_are_alive_or_stopped_keep_their_trials(
    sweep: Sweep, url: str, clock: list[float], tmp_path: Path
) -> None:
    here, there = (Search(sweep, tmp_path / name, storage=url) for name in ("here", "there"))
    running, stopped = claim(here), claim(here)
    stopped.finish("stopped", value=None, curve=[(1, 0.1)], seconds=1, reason="")
    for _ in range(20):
        clock[0] += owners.RECORD_SECONDS
        running.report([], seconds=clock[0])
        assert there.claim(num_trials=2) is None
    assert not there.is_undecided()
    states = {trial.number: trial.state for trial in there.trials()}
    assert states == {running.number: "running", stopped.number: "stopped"}


def test_nobody_is_taken_for_gone_because_the_database_was(
    sweep: Sweep, url: str, clock: list[float], tmp_path: Path
) -> None:
    here, there = (Search(sweep, tmp_path / name, storage=url) for name in ("here", "there"))
    claim(here, 1)
    assert there.claim(num_trials=1) is None
    clock[0] += 10 * owners.SILENCE_SECONDS
    there._storage.num_outages += 1  # type: ignore[attr-defined]
    assert there.claim(num_trials=1) is None
    clock[0] += owners.SILENCE_SECONDS
    assert there.claim(num_trials=1) is not None


# --- What an earlier version left behind, and the number of messages ---


def test_a_sweep_of_an_earlier_version_is_read_and_continued(sweep: Sweep, url: str, tmp_path: Path) -> None:
    search = Search(sweep, tmp_path / "here", storage=url)
    study = optuna.load_study(study_name=sweep.name, storage=url)
    mark = (tmp_path / "here" / ".mark").read_text()
    attributes: list[dict[str, Any]] = [
        {"curve": [[1.0, 0.4]], "seconds": 7.5, "reason": "", "stopped": False, "folder": "/old/trial-0000"},
        {"seconds": 2.0, "stopped": True, "folder": "/old/trial-0001"},
    ]
    for entries in attributes:
        study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs={"mark": mark} | entries))
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    study.set_user_attr("surplus-2", True)
    study.tell(0, 0.4)
    search = Search(sweep, tmp_path / "here", storage=url)
    before = search.trials()
    assert [(one.number, one.state, one.value, one.seconds) for one in before] == [
        (0, "finished", 0.4, 7.5),
        (1, "stopped", None, 2.0),
    ]
    assert before[0].where == "/old/trial-0000"
    again = claim(search)
    assert again.number == 1
    assert again.parameters == {"max_lr": 0.01, "momentum": 0.9}
    again.finish("finished", value=0.5, curve=[(1, 0.5)], seconds=1, reason="")
    assert search.claim(num_trials=2) is None
    assert [one.seconds for one in search.trials()] == [7.5, 3.0]


def test_a_trial_costs_few_messages_to_the_database(sweep: Sweep, url: str, tmp_path: Path) -> None:
    """Each message takes a round trip, and time in Optuna: these were 170 for a trial with five values."""
    search, counts = Search(sweep, tmp_path / "sweep", storage=url), Counter[str]()
    engine = sqlalchemy.engine.Engine
    listeners = {
        "before_cursor_execute": lambda *args: counts.update(["statement"]),
        "begin": lambda *args: counts.update(["begin"]),
        "commit": lambda *args: counts.update(["commit"]),
    }
    for name, listener in listeners.items():
        sqlalchemy.event.listen(engine, name, listener)
    try:
        num_trials = 0
        while claimed := search.claim(num_trials=40):
            for epoch in range(1, 6):
                claimed.report([0.1 * n for n in range(epoch)], seconds=epoch)
            claimed.finish("finished", value=0.4, curve=[(5, 0.4)], seconds=5, reason="")
            num_trials += 1
    finally:
        for name, listener in listeners.items():
            sqlalchemy.event.remove(engine, name, listener)
    assert num_trials == 40
    assert counts.total() / num_trials <= 45
