"""Watchdog of a start: ends a process that does not get connected in time, and says what stands in the way."""

import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch.distributed.distributed_c10d import Store

from cifar10_accel.errors import LostPeerError

if TYPE_CHECKING:
    from cifar10_accel.training.launch.joining import Launch, Member

CONNECT_SECONDS = 3.0
POLL_SECONDS = 0.5
WARN_AFTER = 30.0  # seconds without a connection, or half of the timeout if that is less

logger = logging.getLogger(__name__)


class LaunchWatchdog:
    """Context that must be left within the timeout of the launch; else the process ends with exit code 6.

    Neither gloo nor NCCL can be interrupted while it connects, hence a thread and the end of the process.
    """

    def __init__(self, launch: "Launch", store: Store) -> None:
        self._launch, self._store = launch, store
        self._host = launch.members[launch.rank].host
        self._connected = threading.Event()
        self._faults: list[str] = []  # that any machine has found so far

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="launch watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connected.set()

    def explanation(self) -> str:
        """Return one line: which machine is not reached from where, as far as the ranks have found out."""
        self._collect_faults()
        cause = self._faults[0] if self._faults else f"all of {', '.join(self._launch.hosts)} have started"
        return (
            f"launch: the processes do not connect within {self._seconds():g} s (collective_timeout): {cause}; open "
            "all ports between the machines, or name their common network by GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        )

    def _seconds(self) -> float:
        return self._launch.timeout.total_seconds()

    def _watch(self) -> None:
        started, seconds = time.monotonic(), self._seconds()
        first = min(WARN_AFTER, seconds / 2)
        if self._connected.wait(first):
            return
        self._publish(unreachable_hosts(self._launch))
        has_warned = False
        while not self._connected.wait(POLL_SECONDS):
            self._collect_faults()
            if self._faults and not has_warned:
                logger.warning("launch: not connected after %g s: %s", first, self._faults[0])
                has_warned = True
            if time.monotonic() > started + seconds:
                logger.error(self.explanation())
                os._exit(LostPeerError.exit_code)

    def _publish(self, faults: list[str]) -> None:
        """Tell the other ranks, whose own attempts may all succeed."""
        self._faults = faults
        with suppress(RuntimeError):
            self._store.set(f"fault/{self._host}", "; ".join(faults))

    def _collect_faults(self) -> None:
        """Add what the other machines have published; the store may have gone with the first of them."""
        with suppress(RuntimeError):
            for host in self._launch.hosts:
                if self._store.check([f"fault/{host}"]):
                    text = self._store.get(f"fault/{host}").decode()
                    self._faults += [text] if text and text not in self._faults else []


def unreachable_hosts(launch: "Launch") -> list[str]:
    """Return one sentence for each other machine that cannot be reached from this one at a random port."""
    own = launch.members[launch.rank].host
    others = [member for member in launch.members if member.guard_port and member.host != own]
    with ThreadPoolExecutor(max_workers=16) as pool:
        reasons = list(pool.map(_failure, others))
    return [
        f"{own} does not reach {member.host} at {member.address} port {member.guard_port} ({reason})"
        for member, reason in zip(others, reasons, strict=True)
        if reason
    ]


def _failure(member: "Member") -> str:
    """Return the reason why a connection to a process fails; empty if it does not."""
    try:
        socket.create_connection((member.address, member.guard_port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
