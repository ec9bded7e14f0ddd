"""Connection to W&B for commands that read from it; needs no torch. Failures become one-line errors."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cifar10_accel.errors import InputError
from cifar10_accel.formatting import error_line

TIMEOUT_SECONDS = 20
SETTLE_SECONDS = 0.3  # the service needs about a millisecond


@contextmanager
def connected(what: str) -> Iterator[Any]:
    """Context of a `wandb.Api` that turns W&B's exceptions into an `InputError` that begins with `what`.

    It never prompts for a key. If the server does not respond, the error comes after about TIMEOUT_SECONDS.
    """
    try:
        import wandb
        from wandb.sdk.lib import wbauth
    except ImportError:
        raise InputError(f"{what}: wandb is not installed; pip install wandb") from None
    server = wandb.setup().settings.base_url
    try:
        if not wbauth.authenticate_session(host=server, source="cifar10-accel", prompt=False, update_session=False):
            raise InputError(f"{what}: nobody is logged in to {server}; run `wandb login`")
        yield wandb.Api(timeout=TIMEOUT_SECONDS)
    except (wandb.Error, ValueError) as error:
        let_service_settle()
        # W&B raises a ValueError, plain or wrapped, if the path does not exist.
        if isinstance(getattr(error, "exc", error), ValueError):
            raise InputError(f"{what}: not found at {server} ({error_line(error)}); check the path") from None
        raise InputError(
            f"{what}: {server} does not respond or does not accept the key ({error_line(error)}); "
            "check the network and `wandb login`"
        ) from None


def let_service_settle() -> None:
    """Wait after W&B has given up on a request, before its service is stopped or the process exits.

    The service replies that the request is cancelled. If the connection is closed before that reply, the service stops
    reading, never receives its shutdown message, and the client waits for it without a timeout.
    """
    time.sleep(SETTLE_SECONDS)
