"""The launch: the processes of this start find each other, or end in time and say what stands in the way.

The launcher's store outlives the processes that it restarts, and the launchers of several machines do not count their
restarts alike. So the ranks agree on an id of this start: each writes a token of its own, rank 0 answers each token
with the id, and everything else is stored under that id. Only a rank 0 that runs now can have answered a token.
"""

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property

import psutil
import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from cifar10_accel.errors import LostPeerError, SettingsError
from cifar10_accel.training.launch.hang_guard import HangGuard
from cifar10_accel.training.launch.lost_peer import is_lost_peer
from cifar10_accel.training.launch.watchdog import LaunchWatchdog

POLL_SECONDS = 0.05
ALL_AGAIN = "start the same command on all machines again"

logger = logging.getLogger(__name__)
_joined: list["Launch"] = []  # what this process has joined: one launch at most


@dataclass(frozen=True)
class Member:
    """One process of the launch, as it describes itself to the others."""

    token: str
    rank: int
    pid: int
    host: str
    known_as: str  # the first address that the host finds for its own name
    address: str | None  # at which the backend can be reached; None: only within this machine
    guard_port: int = 0  # of the process that ends this machine's ranks if they hang; 0: another rank has it


@dataclass(frozen=True)
class Launch:
    """The processes of this start."""

    start: str  # a random id
    members: tuple[Member, ...]  # by rank
    rank: int
    timeout: timedelta

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """The names of the machines, in the order of their first ranks."""
        return tuple(dict.fromkeys(member.host for member in self.members))


@contextmanager
def join_launch(backend: str, timeout: timedelta) -> Iterator[None]:
    """Context in which the processes of this start join in a process group and make their first collective.

    Entering it joins them; the process is ended, with the likely cause in words, if the context is not left in time.

    Args:
        backend: "gloo", "nccl" or another of torch's.
        timeout: For joining as a whole, and later for each collective.

    Raises:
        LostPeerError: A process of the launch is missing or cannot be reached.
        SettingsError: The launcher's variables are incomplete, or a machine is known to itself by a loopback address.
    """
    store, rank, num_processes = _open_store(timeout)
    is_on_several_machines = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < num_processes
    address = _own_address(backend)
    guard = None
    if is_on_several_machines and os.environ.get("LOCAL_RANK", "0") == "0":
        guard = HangGuard.start(address)
    host = socket.gethostname()
    known_as = next(iter(_addresses(host)), "no address")
    mine = Member(uuid.uuid4().hex, rank, os.getpid(), host, known_as, address, guard.port if guard else 0)
    try:
        start, members = _meet(store, mine, num_processes, timeout)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise LostPeerError(f"launch: the launcher or the process of rank 0 is gone; {ALL_AGAIN}") from error
    launch = Launch(start, members, rank, timeout)
    if guard is not None:
        guard.watch(launch)
    if backend == "gloo" and len(launch.hosts) > 1:
        _require_addresses(launch)
    shared = PrefixStore(start, store)
    with LaunchWatchdog(launch, shared.clone()) as watchdog:
        try:
            torch.distributed.init_process_group(
                backend, store=shared, rank=rank, world_size=num_processes, timeout=timeout
            )
            _joined[:] = [launch]
            yield
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            raise LostPeerError(watchdog.explanation()) from error


def current_launch() -> Launch | None:
    """Return the launch that this process has joined; None for a single process or a process group of the caller's."""
    return _joined[0] if _joined else None


def _open_store(timeout: timedelta) -> tuple[Store, int, int]:
    """Return the launcher's store without the prefix that it counts its restarts with, this rank, and their number."""
    try:
        store, rank, num_processes = next(rendezvous("env://", timeout=timeout))
    except ValueError as error:  # an incomplete set of a launcher's variables
        raise SettingsError(f"launch: {error}; start with `accelerate launch` or torchrun") from None
    except torch.distributed.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        fault = f"rank 0 does not answer at {place}"
        if os.environ.get("RANK") == "0":
            fault = f"not all processes have come to {place}"
        raise LostPeerError(f"launch: {fault} ({str(error).splitlines()[0]}); {ALL_AGAIN}") from error
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return PrefixStore("cifar10_accel", store), rank, num_processes


def _meet(store: Store, mine: Member, num_processes: int, timeout: timedelta) -> tuple[str, tuple[Member, ...]]:
    """Agree on an id of this start; return it and the processes that take part, by rank."""
    deadline = time.monotonic() + timeout.total_seconds()
    if mine.rank == 0:
        start = uuid.uuid4().hex
        members = {0: mine}
        while len(members) < num_processes:
            missing = [rank for rank in range(num_processes) if rank not in members]
            for rank in missing:
                if (member := _answer(store, rank, start)) is not None:
                    members[rank] = member
            if len(members) < num_processes:
                if time.monotonic() > deadline:
                    raise _missing(f"no process has joined as rank {missing[0]} of {num_processes}", timeout)
                time.sleep(POLL_SECONDS)
        everyone = [members[rank] for rank in range(num_processes)]
        store.set(f"members/{start}", json.dumps([asdict(member) for member in everyone]))
        return start, tuple(everyone)
    store.set(f"join/{mine.rank}", json.dumps(asdict(mine)))
    _wait_for(store, f"welcome/{mine.token}", timeout, fault=f"rank 0 of {num_processes} has not joined")
    start = store.get(f"welcome/{mine.token}").decode()
    store.set(f"confirm/{start}/{mine.token}", "")
    left = timedelta(seconds=max(0.1, deadline - time.monotonic()))
    _wait_for(store, f"members/{start}", left, fault=f"not all of {num_processes} processes have joined")
    return start, tuple(Member(**values) for values in json.loads(store.get(f"members/{start}")))


def _answer(store: Store, rank: int, start: str) -> Member | None:
    """Answer what is stored as the token of a rank; return the rank's process once it has confirmed the answer.

    The stored token may be of an earlier start; nobody reads that answer, and the present rank replaces the token.
    """
    if not store.check([f"join/{rank}"]):
        return None
    member = Member(**json.loads(store.get(f"join/{rank}")))
    store.set(f"welcome/{member.token}", start)
    return member if store.check([f"confirm/{start}/{member.token}"]) else None


def _wait_for(store: Store, key: str, timeout: timedelta, *, fault: str) -> None:
    """Wait until a key is set, without polling: the store serves all ranks."""
    started = time.monotonic()
    try:
        store.wait([key], timeout)
    except RuntimeError as error:
        if time.monotonic() - started < timeout.total_seconds():
            raise  # the store has gone
        raise _missing(fault, timeout) from error


def _missing(fault: str, timeout: timedelta) -> LostPeerError:
    return LostPeerError(
        f"launch: {fault} within {timeout.total_seconds():g} s (collective_timeout), seen on {socket.gethostname()}; "
        f"{ALL_AGAIN}, each with its own machine rank"
    )


def _own_address(backend: str) -> str | None:
    """Return the address at which other machines reach the backend of this process; None: a loopback address.

    Gloo takes the interface GLOO_SOCKET_IFNAME, else the first usable address of the own host name. Other backends
    choose for themselves; the address towards rank 0 is a good guess.
    """
    if backend == "gloo":
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
        known = psutil.net_if_addrs().get(interface, [])
        found = [entry.address for entry in known if entry.family in (socket.AF_INET, socket.AF_INET6)]
        usable = found or [address for address in _addresses(socket.gethostname()) if _can_bind(address)]
        return usable[0] if usable and not _is_loopback(usable[0]) else None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards_main:
        try:
            towards_main.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        except OSError:
            return None
        address: str = towards_main.getsockname()[0]
        return None if _is_loopback(address) else address


def _addresses(name: str) -> list[str]:
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def _can_bind(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _require_addresses(launch: Launch) -> None:
    """Raise `SettingsError`, on all ranks, if the others of several machines are told a loopback address."""
    for member in launch.members:
        if member.address is None:
            raise SettingsError(
                f"launch: {member.host} resolves its own name to {member.known_as}, where other machines cannot reach "
                f"it; write its address in the network into /etc/hosts on "
                f"{member.host}, or set GLOO_SOCKET_IFNAME to the name of its network interface, such as eth0"
            )
