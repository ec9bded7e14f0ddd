"""The console: any text is shown as it is, on any encoding of stdout, and nothing else in the package prints markup."""

import ast
import io
import sys
from pathlib import Path

import pytest
from rich.table import Table
from training_commands import REPOSITORY

from cifar10_accel.tracking.console import LiteralConsole

NAMES = ("[/x]", "[bold]y", "wd[red", "[link=https://x.org]z", ":smile:", "a\\[b]")


def printed(*objects: object, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # with strict errors, as stdout mostly has
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "79")
    console = LiteralConsole()
    for item in objects:
        console.print(item)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def make_table(*cells: str) -> Table:
    table = Table(*cells, title=cells[0], caption=cells[-1])
    table.add_row(*cells)
    return table


def test_text_is_no_markup_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        shown = printed(f"runs/{name}", make_table(name, "other", name), monkeypatch=monkeypatch)
        assert shown.count(name) == 7, shown


def test_characters_that_stdout_lacks_are_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = printed("run café", make_table("日本", "other", "n\udce9t"), monkeypatch=monkeypatch, encoding="ascii")
    assert r"run caf\xe9" in shown
    assert r"\u65e5\u672c" in shown
    assert r"n\udce9t" in shown
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "the columns are not aligned"


def test_a_file_name_that_is_not_utf8_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert r"n\udce9t.png" in printed("n\udce9t.png", monkeypatch=monkeypatch)


def test_every_console_of_the_package_shows_text_as_it_is() -> None:
    """Consoles and text columns are made without markup; descriptions of `track` are constant or escaped."""
    found = 0
    for path in sorted((REPOSITORY / "cifar10_accel").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in ("Console", "TextColumn"):
                where = f"{path.name}:{node.lineno}"
                assert any(option.arg == "markup" for option in node.keywords) or _is_unused(path), where
                found += 1
            if name == "track" and len(node.args) > 1:
                text = node.args[1]
                assert isinstance(text, ast.Constant) or getattr(text, "func", None), f"{path.name}:{node.lineno}"
    assert found > 5


def _is_unused(path: Path) -> bool:
    """Return True if the only Console in the file prints nothing: it is asked for the kind of the terminal."""
    return "Console().is_jupyter" in path.read_text() and path.read_text().count("Console()") == 1
