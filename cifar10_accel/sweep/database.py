"""Optuna's database storage, for workers on many machines: its URL, and patience while the database does not answer."""

import abc
import importlib.util
import logging
import random
import time
from collections.abc import Callable
from typing import Any, cast

import optuna
import sqlalchemy
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cifar10_accel.errors import SettingsError
from cifar10_accel.formatting import error_line, format_seconds

OPEN_SECONDS = 20.0  # a database that does not answer at the start is rather a wrong URL than a restart
WAIT_SECONDS = 600.0
LONGEST_PAUSE = 5.0
EXAMPLE = "a URL like postgresql://user@host/base"
# A connection whose other end has lost its power, or that a firewall has forgotten, is given up after about a minute.
POSTGRES_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "cifar10-accel",
}

logger = logging.getLogger(__name__)


class PatientStorage(optuna.storages.BaseStorage):
    """A storage that waits, up to WAIT_SECONDS and with one warning, while its database does not answer.

    A second attempt may meet what the first has recorded without being able to say so. That is harmless: Optuna writes
    parameters, values and attributes by their names, and a trial created twice is one that its runner continues later.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, title: str) -> None:
        """Wrap a storage.

        Args:
            storage: The storage.
            title: Name of the database in messages.
        """
        self._storage, self._title = storage, title
        self._has_given_up = False
        self.num_outages = 0
        self.should_wait: Callable[[], bool] = lambda: True  # asked several times a second

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return the result of the wrapped storage's method of this name.

        Raises:
            StorageInternalError: The database did not answer in time, or refuses the access.
        """
        started, num_failures = time.monotonic(), 0
        while True:
            try:
                result = getattr(self._storage, name)(*args, **kwargs)
            except optuna.exceptions.UpdateFinishedTrialError:
                if name == "set_trial_state_values" and num_failures:
                    result = True  # the attempt before has recorded the end of the trial
                else:
                    raise
            except optuna.exceptions.StorageInternalError as error:
                num_failures += 1
                if not self._wait(error, num_failures, waited=time.monotonic() - started):
                    self._has_given_up = is_outage(error)
                    raise
                continue
            if num_failures > 1:
                logger.warning(f"storage: {self._title} answers again, after {_seconds_since(started)}")
            return result

    def _wait(self, error: Exception, num_failures: int, *, waited: float) -> bool:
        """Pause before another attempt, and return whether there should be one."""
        if not is_outage(error) or self._has_given_up:
            return False
        if num_failures == 1:
            return True  # at once and in silence: after a restart of the database, old connections fail once
        if waited > WAIT_SECONDS or not self.should_wait():
            return False
        if num_failures == 2:
            self.num_outages += 1
            logger.warning(
                f"storage: {self._title} does not answer ({error_line(cause_of(error))}); "
                f"trying again for {format_seconds(WAIT_SECONDS)}, trainings continue"
            )
        until = time.monotonic() + min(LONGEST_PAUSE, 0.25 * 2**num_failures) * random.uniform(0.5, 1)
        while time.monotonic() < until and self.should_wait():
            time.sleep(0.1)
        return self.should_wait()


def _patient(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self._call(name, *args, **kwargs)


for _name in optuna.storages.BaseStorage.__abstractmethods__:
    setattr(PatientStorage, _name, _patient(_name))
_Concrete: Any = abc.update_abstractmethods(cast(Any, PatientStorage))  # the class itself; mypy calls it abstract


def open_database(text: str) -> PatientStorage:
    """Open the database at a URL; its tables are created if missing.

    Raises:
        SettingsError: The URL is wrong, the driver is missing, or the database does not answer for OPEN_SECONDS.
    """
    url = database_url(text)
    backend = url.get_backend_name()
    title = str(sqlalchemy.URL.create(backend, url.username, None, url.host, url.port, url.database))
    options: dict[str, Any] = {}
    if url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        options = {"connect_args": {name: value for name, value in POSTGRES_OPTIONS.items() if name not in url.query}}
    started, num_failures = time.monotonic(), 0
    while True:
        try:
            database = optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)
            return cast(PatientStorage, _Concrete(optuna.storages.get_storage(database), title))
        except ImportError as error:
            raise SettingsError(
                f"storage: the driver of {url.drivername} is not installed ({error_line(error.__cause__ or error)})"
            ) from None
        except Exception as error:  # of each database's own type
            num_failures += 1
            line = error_line(cause_of(error))
            if not isinstance(error, DBAPIError) or time.monotonic() - started > OPEN_SECONDS:
                raise SettingsError(f"storage: {title} cannot be opened ({line}); give {EXAMPLE}") from None
            if is_outage(error) and num_failures == 2:
                logger.warning(f"storage: {title}: {line}; trying again for {format_seconds(OPEN_SECONDS)}")
        # Runners that create the tables at the same time fail together: at random times they do not meet again.
        time.sleep(random.uniform(0.3, 1.5))


def database_url(text: str) -> sqlalchemy.URL:
    """Return a URL with the driver to use: of PostgreSQL, psycopg 3, or 2 where only that is installed.

    The messages never show the text, which may have a password in it.

    Raises:
        SettingsError: It is no URL, or of an unknown kind of database, or the driver of PostgreSQL is missing.
    """
    try:
        url = sqlalchemy.make_url(text.replace("postgres://", "postgresql://", 1))
    except (ArgumentError, ValueError):
        raise SettingsError(f"storage: cannot be read as a URL; {_advice()}") from None
    if "@" in (url.host or ""):
        raise SettingsError(f"storage: has two @ before the path; {_advice()}")
    if url.drivername == "postgresql":
        driver = next((name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name)), None)
        if driver is None:
            raise SettingsError(
                "storage: psycopg, the driver of PostgreSQL, is not installed; pip install 'cifar10-accel[postgres]'"
            )
        url = url.set(drivername=f"postgresql+{driver}")
    try:
        url.get_dialect()
    except NoSuchModuleError:
        raise SettingsError(f"storage: {url.drivername!r} is no kind of database known here; give {EXAMPLE}") from None
    except ImportError:
        pass  # the driver, about which `open_database` has a message
    return url


def is_outage(error: BaseException) -> bool:
    """Return whether the database did not answer, as opposed to refusing what it was asked."""
    return any(isinstance(one, (OperationalError, InterfaceError, PoolTimeoutError)) for one in _chain(error))


def cause_of(error: BaseException) -> BaseException:
    """Return the driver's error behind an error of Optuna or SQLAlchemy, or the first error of all."""
    chain = _chain(error)
    return next((one.orig for one in chain if isinstance(one, DBAPIError) and one.orig), chain[-1])


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it, the newest first."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    return chain


def _advice() -> str:
    return f"give {EXAMPLE}, with %40 %3A %2F %25 for @ : / % in a name or password"


def _seconds_since(started: float) -> str:
    return format_seconds(time.monotonic() - started)
