"""Checks of `doctor` for a launch on several machines; each compares all ranks.

`make_accelerator` has made some of them before the processes have joined; then only their values are shown.
"""

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar10_accel.commands.doctor_checks import Check, existing_folder
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.training.launch.joining import Launch, current_launch
from cifar10_accel.training.launch.watchdog import unreachable_hosts

CLOCK_SECONDS = 5.0  # by which clocks may differ: files then still have a plausible order


def examine_machines(settings: Settings, accelerator: Accelerator) -> Iterator[Check]:
    """Yield the checks of a launch on several machines; none for a single one. All ranks must iterate over it."""
    launch = current_launch()
    if launch is None or len(launch.hosts) == 1:
        return
    yield names(launch)
    is_first_here = bool(launch.members[launch.rank].guard_port)
    yield reachability(launch, gather_object(unreachable_hosts(launch) if is_first_here else []))
    yield versions(launch)
    accelerator.wait_for_everyone()
    yield clocks(gather_object([(socket.gethostname(), time.time())]))
    yield _shared_folder(settings, accelerator)


def names(launch: Launch) -> Check:
    """Report the address of each machine; `make_accelerator` refuses one that knows itself by a loopback address."""
    addresses = {member.host: member.address or member.known_as for member in launch.members}
    return Check("ok", "machines: " + ", ".join(f"{host} at {address}" for host, address in addresses.items()))


def reachability(launch: Launch, faults: list[str]) -> Check:
    """Check that no machine has failed to reach another one at a port that the system has chosen."""
    if faults:
        remedy = "open all ports between the machines, or name their common network by GLOO_SOCKET_IFNAME"
        return Check("error", f"network: {'; '.join(faults)}", remedy)
    ports = ", ".join(f"{member.host}:{member.guard_port}" for member in launch.members if member.guard_port)
    return Check("ok", f"network: each machine reaches the others at random ports ({ports})")


def versions(launch: Launch) -> Check:
    """Report the versions; `make_accelerator` refuses ranks with different ones."""
    found = ", ".join(f"{name} {version(name)}" for name in ("cifar10-accel", "torch", "accelerate"))
    return Check("ok", f"versions: {found} on {len(launch.hosts)} machines")


def clocks(times: list[tuple[str, float]]) -> Check:
    """Check that the clocks of the machines, read at the same moment, agree."""
    (slow_host, slow), (fast_host, fast) = (choose(times, key=lambda entry: entry[1]) for choose in (min, max))
    if fast - slow > CLOCK_SECONDS:
        text = f"clocks: {fast_host} is {fast - slow:.0f} s ahead of {slow_host}"
        return Check("warning", text, "synchronise the clocks (chrony, ntpd): dates of files and logs are misleading")
    return Check("ok", f"clocks: they differ by at most {fast - slow:.1f} s")


def shared_folder(path: Path, seen: list[tuple[str, bool]]) -> Check:
    """Check that every rank has seen a file that rank 0 has written beside the run folder."""
    blind = list(dict.fromkeys(host for host, found in seen if not found))
    if blind:
        text = f"shared disk: {', '.join(blind)} cannot see what {seen[0][0]} writes to {path}; a run cannot be resumed"
        return Check("error", text, "give a --run-dir on a disk that all machines see")
    return Check("ok", f"shared disk: all ranks see what rank 0 writes to {path}")


def _shared_folder(settings: Settings, accelerator: Accelerator) -> Check:
    folder = existing_folder(RunFolder.of(settings).path.absolute())
    with ExitStack() as until_all_have_looked:
        mine = None
        if accelerator.is_main_process:
            with suppress(OSError):  # reported by the check of the run folder
                mine = until_all_have_looked.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"))
        name, *_ = gather_object([mine.name if mine is not None else None])
        seen = gather_object([(socket.gethostname(), name is not None and Path(name).exists())])
    return shared_folder(folder if name is None else Path(name).parent, seen)
