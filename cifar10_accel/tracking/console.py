"""The console of the package: text from outside is shown as it is, and none of it can end a command.

Paths, names of runs and classes, and error texts may have any characters. `[bold]` is not markup here, and a character
that the encoding of stdout lacks is shown as an escape such as `\\xe9`.
"""

import os
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text


class LiteralConsole(Console):
    """Console on stdout for text and tables; without markup, also in the cells of tables.

    In a notebook it writes plain text, so that rows of a table stay below each other. It ignores a closed pipe
    (`| head`), where rich would end the process.

    Args:
        soft_wrap: Print long lines as they are, for the terminal to wrap.
        quiet: Print nothing.
    """

    def __init__(self, *, soft_wrap: bool = False, quiet: bool = False) -> None:
        super().__init__(
            file=_escaping(sys.stdout),
            soft_wrap=soft_wrap,
            quiet=quiet,
            markup=False,
            emoji=False,
            highlight=False,
            force_jupyter=False,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string, such as the cell of a table, as it will be shown, so that its width is right."""
        return super().render_str(_encodable(text, self.encoding), **options)

    def on_broken_pipe(self) -> None:
        """Send further output to /dev/null."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _EscapingStream:
    """A text stream that writes characters which its encoding lacks as escapes, where Python would raise an error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(_encodable(text, self._stream.encoding or "utf-8"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _encodable(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escaping(stream: TextIO) -> Any:
    return _EscapingStream(getattr(stream, "rich_proxied_file", stream))  # below a progress bar that is shown now
