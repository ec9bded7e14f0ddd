"""A small process beside the ranks of a machine, which ends them if they hang after the others have given up.

A rank that is stopped or in a deadlock cannot notice that the other machines have ended, and its launcher waits for it
for ever. The first rank of each machine starts this file as a program of its own; ranks of other machines tell it when
they have lost a process, and it kills the ranks of its machine that are still there after a while.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar10_accel.training.launch.joining import Launch

GRACE_SECONDS = 30.0  # for ranks that do not hang: they notice the loss themselves
CONNECT_SECONDS = 2.0


class HangGuard:
    """The guard's process, as its first rank sees it."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process, self.port = process, port

    @classmethod
    def start(cls, address: str | None) -> "HangGuard | None":
        """Start a guard that listens at the address; None where the system has no process descriptors."""
        if not hasattr(os, "pidfd_open") or address is None:
            return None
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the ranks
        )
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        return cls(process, int(port)) if port else None

    def watch(self, launch: "Launch") -> None:
        """Tell the guard which processes of this machine to end, and the word that others have to know."""
        host = launch.members[launch.rank].host
        task = {
            "word": launch.start,
            "pids": [member.pid for member in launch.members if member.host == host],
            "grace": min(GRACE_SECONDS, launch.timeout.total_seconds()),
        }
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.close()


def tell_guards(launch: "Launch") -> None:
    """Tell the other machines that this one has lost a process. Those that cannot be reached are passed over."""
    own = launch.members[launch.rank].host
    for member in launch.members:
        if member.guard_port and member.host != own:
            with (
                suppress(OSError),
                socket.create_connection((member.address, member.guard_port), CONNECT_SECONDS) as to,
            ):
                to.sendall(launch.start.encode())


def _serve(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family)
    sys.stdout.write(f"{server.getsockname()[1]}\n")
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not line:  # the first rank has ended before it knew the others
        return
    task = json.loads(line)
    ranks = []
    for pid in task["pids"]:
        with suppress(OSError):
            ranks.append(os.pidfd_open(pid))
    end_at = None
    while ranks:
        wait = None if end_at is None else max(0.0, end_at - time.monotonic())
        listened: list[Any] = [server, *ranks]
        ready, _, _ = select.select(listened, [], [], wait)
        ranks = [rank for rank in ranks if rank not in ready]  # ready: it has ended
        if server in ready and _hears(server, task["word"]) and end_at is None:
            end_at = time.monotonic() + task["grace"]
        if end_at is not None and time.monotonic() >= end_at:
            for rank in ranks:
                with suppress(OSError):
                    signal.pidfd_send_signal(rank, signal.SIGKILL)
            return


def _hears(server: socket.socket, word: str) -> bool:
    """Return True if the next connection brings the word; others are attempts at reaching this machine."""
    with suppress(OSError):
        connection, _ = server.accept()
        with connection:
            connection.settimeout(CONNECT_SECONDS)
            return connection.recv(len(word)).decode(errors="replace") == word
    return False


if __name__ == "__main__":
    _serve(sys.argv[1])
