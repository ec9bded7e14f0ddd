"""The errors a user can meet, each with the exit code it ends the process with.

`UserError` means: something outside this code is wrong (a setting, a file, the hardware) and the
message is one line that says what, the value seen and what to do. Everything else is a bug of ours
and keeps its traceback.
"""

import difflib


class UserError(Exception):
    """Something the user can mend; its message is one line, never a traceback."""

    exit_code = 2
    is_shared = False  # raised alike on every rank, so that one of them is enough to say it


class SettingsError(UserError, ValueError):
    """A setting, flag, recipe or launch that cannot be (exit 2)."""

    exit_code = 2
    is_shared = True


class InputError(UserError):
    """Bad input: data set, checkpoint, run folder or image (exit 3)."""

    exit_code = 3


class NonFiniteError(UserError):
    """The loss or a gradient stopped being a finite number on some rank, and all know it (exit 4)."""

    exit_code = 4
    is_shared = True


class OutOfResourcesError(UserError):
    """Out of memory or disk (exit 5)."""

    exit_code = 5


class Preempted(UserError):
    """A stop signal was obeyed and the state is on disk: the same command resumes (130 or 143)."""

    def __init__(self, signal_number: int, *, step: int, stop_step: int) -> None:
        super().__init__(
            f"stopped after update {step} of {stop_step}, all saved; the same command continues from there"
        )
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint at the known word closest to this one, or nothing if none is close."""
    close = difflib.get_close_matches(word.replace("-", "_"), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
