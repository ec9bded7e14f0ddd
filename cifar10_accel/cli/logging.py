"""Text on the terminal: log messages of the package, and characters that the terminal cannot show."""

import io
import logging
import os
import sys

from cifar10_accel.cli.flags import is_main_rank


class _TerminalHandler(logging.Handler):
    """Handler that prints info messages to stdout, warnings and errors to stderr with the prefix of their level."""

    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        prefix, stream = (f"{record.levelname.lower()}: ", sys.stderr) if is_warning else ("", sys.stdout)
        try:
            print(f"{prefix}{record.getMessage()}", file=stream, flush=True)
        except BrokenPipeError:  # the reader of the pipe, such as `| head`, has ended: the command continues
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_log_messages() -> None:
    """Print the package's log messages on the terminal, on rank 0 only. A second call has no effect."""
    logger = logging.getLogger("cifar10_accel")
    if not any(isinstance(handler, _TerminalHandler) for handler in logger.handlers):
        logger.addHandler(_TerminalHandler())
        logger.setLevel(logging.INFO if is_main_rank() else logging.ERROR)
        logger.propagate = False


def escape_what_streams_cannot_encode() -> None:
    """Make stdout and stderr show characters that they cannot encode as escapes, where Python would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a caller has replaced it
            stream.reconfigure(errors="backslashreplace")
