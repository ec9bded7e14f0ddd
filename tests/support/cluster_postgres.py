"""A PostgreSQL server on a host of the cluster."""

import os
import shutil
import time
from pathlib import Path

import psutil
import pytest
from cluster_hosts import LOCAL_DISK, Command, Host

PASSWORD = "s3cret-of-the-database"
AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")


def folder_of_programs() -> Path:
    """Return the folder of initdb and postgres; without them the test is skipped."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(newest[-1]) if newest else shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    return Path(found).parent


class Postgres:
    """A server with the database `sweep` and a user `sweep`, who needs PASSWORD; its data are on the host's disk."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.url = f"postgresql://sweep@{host.name}/sweep"
        self.url_with_password = f"postgresql://sweep:{PASSWORD}@{host.name}/sweep"
        self._programs = folder_of_programs()
        self._server: Command | None = None
        make_folder = 'cd / && install -d -o postgres -g postgres "$1"'
        write_password = 'install -o postgres -m 600 /dev/stdin "$1/pw" <<< "$2"'
        script = f'{make_folder} && {write_password} && shift 2 && "$@"'
        folder = LOCAL_DISK / "postgres"
        self._data = folder / "data"
        words = [
            "initdb",
            "--auth=scram-sha-256",
            "--username=sweep",
            f"--pwfile={folder}/pw",
            f"--pgdata={self._data}",
        ]
        program = str(self._programs / words[0])
        done = host.run("bash", "-c", script, "initdb", folder, PASSWORD, *AS_POSTGRES, program, *words[1:])
        assert done.returncode == 0, done.stderr
        self._host_rule = f"host all all {host.address.rpartition('.')[0]}.0/24 scram-sha-256"
        host.run("bash", "-c", f"echo {self._host_rule} >> {self._data}/pg_hba.conf").check_returncode()
        self.start()
        done = host.run(
            self._programs / "createdb", "--host=127.0.0.1", "--username=sweep", "sweep", PGPASSWORD=PASSWORD
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["-c", "listen_addresses=*", "-c", "unix_socket_directories="]
        program = str(self._programs / "postgres")
        self._server = self.host.start("env", "--chdir=/", *AS_POSTGRES, program, "-D", self._data, *options)
        until = time.monotonic() + 60
        while self.host.run(self._programs / "pg_isready", "--host=127.0.0.1", "--quiet").returncode:
            assert time.monotonic() < until, self._server.output()
            assert self._server.poll() is None, self._server.output()
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill all processes of the server at once, as a power cut does."""
        found = self.host.processes("postgres")
        for process in found:
            if process.is_running():
                process.kill()
        psutil.wait_procs(found, timeout=10)
        self.host.run("rm", "-f", self._data / "postmaster.pid")


def need_postgres() -> None:
    """Skip the test if PostgreSQL, its driver or setpriv is missing."""
    pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
    folder_of_programs()
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("PostgreSQL refuses to run as root, and another user needs root and setpriv")
