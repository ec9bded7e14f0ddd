"""User errors, each with the exit code of the process.

A `UserError` means that something outside this code is wrong (a setting, a file, the hardware); its message is one line
with what is wrong, the value seen and what to do. Any other exception is a bug of this package and keeps its traceback.
"""

import difflib


class UserError(Exception):
    """Something that the user can correct; shown as one line, never as a traceback."""

    exit_code = 2
    is_shared = False  # raised on every rank, so that only one of them needs to show it


class SettingsError(UserError, ValueError):
    """An invalid setting, flag, recipe or launch (exit 2)."""

    exit_code = 2
    is_shared = True


class InputError(UserError):
    """Bad input: data set, checkpoint, run folder or image (exit 3)."""

    exit_code = 3


class NonFiniteError(UserError):
    """The loss or a gradient is not finite on some rank; raised on all ranks (exit 4)."""

    exit_code = 4
    is_shared = True


class OutOfResourcesError(UserError):
    """Out of memory or disk (exit 5)."""

    exit_code = 5


class Preempted(UserError):
    """Stopped by a signal with the state saved: the same command resumes (130 or 143)."""

    def __init__(self, signal_number: int, *, step: int, stop_step: int) -> None:
        super().__init__(f"stopped after step {step} of {stop_step}, all saved; the same command continues from there")
        self.exit_code = 128 + signal_number


# Names of models and recipes in earlier versions; runs/legacy.py reads old run folders by them.
FORMER_NAMES = {
    "custom_resnet": "resnet9",
    "speednet": "airbench94",
    "speednet_deep": "airbench96",
    "resnet24": "resnet9",
    "resnet24_plus": "resnet9_plus",
    "original24": "resnet9_original",
}


def did_you_mean(word: str, known: list[str]) -> str:
    """Return a hint at the known word that is closest to this one; empty if none is close."""
    if FORMER_NAMES.get(word) in known:
        return f" (did you mean {FORMER_NAMES[word]!r}?)"
    close = difflib.get_close_matches(word.replace("-", "_"), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
