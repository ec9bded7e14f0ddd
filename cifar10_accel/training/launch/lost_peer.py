"""Errors of the communication library, told as the loss of a process instead of a traceback of torch."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from cifar10_accel.errors import LostPeerError
from cifar10_accel.training.launch.hang_guard import tell_guards

if TYPE_CHECKING:
    from cifar10_accel.training.launch.joining import Launch

# Parts of gloo's messages, which have no type of their own.
GLOO_SIGNS = ("gloo/transport", "Gloo connectFullMesh", "gloo/rendezvous")
TIMEOUT_SIGNS = ("timed out", "timeout")


def is_lost_peer(error: BaseException) -> bool:
    """Return True for an error of torch's communication, such as a connection closed by the other side."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in GLOO_SIGNS)
    )


@contextmanager
def explain_lost_peer(launch: "Launch | None") -> Iterator[None]:
    """Context that turns errors of the communication into a `LostPeerError`; other errors pass.

    Args:
        launch: The processes of this start; None: a single process, or a group that the caller has made.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise report_lost_peer(error, launch) from error


def report_lost_peer(error: BaseException, launch: "Launch | None") -> LostPeerError:
    """Tell the guards of the other machines, and return one line: who is gone or does not answer, and what to do."""
    if launch is not None:
        tell_guards(launch)
    text = str(error)
    hosts = launch.hosts if launch is not None else ()
    others = [f"a process of {host}" for host in hosts if host != socket.gethostname()]
    lost = _host_in(text, launch) or (others[0] if len(others) == 1 else "another process")
    again = "start the same command on all machines again" if others else "start the same command again"
    if any(sign in text.lower() for sign in TIMEOUT_SIGNS):
        waited = f" within {launch.timeout.total_seconds():g} s (collective_timeout)" if launch is not None else ""
        return LostPeerError(f"{lost} has not answered{waited}: it hangs, or the network is down; {again}")
    return LostPeerError(f"{lost} is gone; {again}, and the run continues from its newest checkpoint")


def _host_in(text: str, launch: "Launch | None") -> str | None:
    """Return "a process of HOST" for the first address in the text that belongs to another machine."""
    if launch is None:
        return None
    names = {member.address: member.host for member in launch.members if member.host != socket.gethostname()}
    for address in re.findall(r"\[?([0-9a-fA-F.:]+)\]?:\d+", text):
        if name := names.get(address.removeprefix("::ffff:")):
            return f"a process of {name}"
    return None
