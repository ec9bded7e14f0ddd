"""Progress of a run: rows that fit a terminal of 80 columns, no empty columns, and a bar where one can be drawn."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from training_commands import CHILD_ENVIRONMENT

from cifar10_accel.tracking.progress import RunProgress

LONGEST = {
    "epoch": 99999.5,
    "lr": 1.234e-05,
    "train/loss": 12.34567,
    "train/accuracy": 1.0,
    "val/accuracy": 0.9876,
    "test/accuracy": 0.8765,
    "images_per_second": 1_234_567.0,
    "seconds": 359_999.0,
}
PROGRAM = """
from cifar10_accel.tracking.progress import RunProgress, track
import time
assert list(track("abc", "letters", num_steps=3, is_main=True)) == ["a", "b", "c"]
with RunProgress(is_main=True, start_step=0, stop_step=100_000, num_epochs=20) as progress:
    progress.update(99_000, 123_456)
    time.sleep(0.3)
    progress.print_epoch({"epoch": 1, "lr": 0.1, "test/accuracy": 0.5})
print("end")
"""


@pytest.mark.parametrize(
    ("has_val", "titles"),
    [
        (False, "epoch lr train loss train acc test acc images/s time"),
        (True, "epoch lr train loss train acc val acc images/s time"),
    ],
)
def test_rows_fit_80_columns_and_have_no_empty_one(
    has_val: bool, titles: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunProgress(is_main=True, start_step=0, stop_step=10, num_epochs=100_000, has_val=has_val) as progress:
        progress.print_epoch(LONGEST)
        progress.print_epoch(LONGEST | {"epoch": 3, "seconds": 0.1})
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == titles.split()
    assert ("98.76%" if has_val else "87.65%") in rows[0]
    assert max(map(len, [header, *rows])) <= 79
    assert rows[1].split()[0] == "3/100000"
    for row in rows:
        assert len(row.split()) == len(LONGEST) - 1 + row.endswith(" s")


def test_other_processes_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(is_main=False, start_step=0, stop_step=10, num_epochs=2) as progress:
        progress.print("text")
        progress.update(3, 100.0)
        progress.print_epoch(LONGEST)
    assert capsys.readouterr().out == ""


def test_the_bar_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    """The bar and the rows, as a terminal gets them, have no line that would wrap."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | CHILD_ENVIRONMENT | {"TERM": "xterm"}
    del environment["COLUMNS"]
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=theirs, stdout=theirs, cwd=tmp_path, env=environment
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how the end of a terminal shows on Linux
            while received := os.read(ours, 1 << 16):
                shown += received
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    lines = re.split(r"[\r\n]+", text)
    bars = [line for line in lines if "steps" in line]
    assert "99000/100000 steps, 123,456 images/s" in bars[-1]
    assert any(line.split()[:2] == ["1/20", "0.1"] for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_notebook_gets_a_bar_that_is_emptied_at_the_end() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRAM)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    (cell,) = notebook.cells
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    assert "ipywidgets" not in str(cell.outputs)
    bars = [output for output in cell.outputs if output.output_type == "display_data"]
    assert len(bars) == 2
    assert text.splitlines()[-1] == "end"
    assert "images/s" in text
    assert "1/20" in text
    assert [bar.data["text/html"] for bar in bars] == ["", ""]
