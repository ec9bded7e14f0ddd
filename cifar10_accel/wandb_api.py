"""A connection to W&B for those who read from it: one that is there and logged in, or one line that says what to do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cifar10_accel.errors import InputError

TIMEOUT_SECONDS = 20
SETTLE_SECONDS = 0.3  # the service takes a millisecond


@contextmanager
def connected(what: str) -> Iterator[Any]:
    """Context of a `wandb.Api`; what W&B raises in it is an `InputError` of one line that begins with `what`.

    Never asks for a key. Takes about 20 s if the server does not answer.
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
        # A ValueError, as it is or wrapped, is what W&B raises where there is nothing.
        if isinstance(getattr(error, "exc", error), ValueError):
            raise InputError(f"{what}: not found at {server} ({_in_one_line(error)}); check the path") from None
        raise InputError(
            f"{what}: {server} gives no answer or none for your key ({_in_one_line(error)}); "
            "check the network and `wandb login`"
        ) from None


def let_service_settle() -> None:
    """Call this after W&B has given up on a request, before its service is ended or the process exits.

    The service answers that it has cancelled the request. If the connection is closed before, the service stops
    reading, misses that it should end, and W&B waits for it without a limit.
    """
    time.sleep(SETTLE_SECONDS)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
