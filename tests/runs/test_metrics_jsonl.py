"""metrics.jsonl: always valid JSON, readable after a kill, and without a step logged twice after a resume."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar10_accel.errors import InputError, OutOfResourcesError
from cifar10_accel.runs.metrics_jsonl import append_metrics, drop_metrics_after, read_metrics


def strictly_parsed(path: Path) -> list[dict[str, Any]]:
    """Return the lines as a strict JSON parser reads them, which accepts no NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def write_lines(path: Path, steps: list[int]) -> bytes:
    for step in steps:
        append_metrics(path, {"train/loss": 1 / step}, step=step, epoch=step / 4)
    return path.read_bytes()


def test_a_line_has_step_epoch_and_metrics_of_any_number_type(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"a": np.float32(0.5), "b": 3, "c": np.int64(4), "d": 0.1 + 0.2}, step=7, epoch=0.25)
    (record,) = strictly_parsed(path)
    assert record == {"step": 7, "epoch": 0.25, "a": 0.5, "b": 3, "c": 4.0, "d": 0.1 + 0.2}
    assert list(record)[:2] == ["step", "epoch"]


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"nan": float("nan"), "inf": float("inf"), "ok": 1.0}, step=1, epoch=0.1)
    assert strictly_parsed(path) == [{"step": 1, "epoch": 0.1, "nan": None, "inf": None, "ok": 1.0}]
    (record,) = read_metrics(path)
    assert np.isnan([record["nan"], record["inf"]]).all()
    assert record["ok"] == 1.0


def test_reading_skips_lines_without_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "epoch": 0.5, "x": 2.0, "note": "text"}\n'
    path.write_bytes(good + b"\n[1, 2]\n\xff\xfe\n" + b'{"x": 1}\n' + b'{"step": 2, "epoch": 0.')
    assert read_metrics(path) == [{"step": 1, "epoch": 0.5, "x": 2.0}]
    with pytest.raises(InputError, match="cannot be read"):
        read_metrics(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(("resume_step", "num_left"), [(0, 0), (1, 1), (3, 4), (99, 6)])
def test_resuming_drops_the_lines_after_its_step(tmp_path: Path, resume_step: int, num_left: int) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = write_lines(path, [1, 2, 3, 3, 4, 5])
    drop_metrics_after(path, resume_step)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:num_left])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("half", [b'{"step": 3, "epo', b"\x00\x00\x00", b"{"])
def test_resuming_removes_a_half_written_line(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = write_lines(path, [1, 2])
    path.write_bytes(whole + half)
    drop_metrics_after(path, 5)
    assert path.read_bytes() == whole


def test_a_line_that_lacks_only_its_end_of_line_is_kept_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = write_lines(path, [1, 2])
    path.write_bytes(whole[:-1])
    drop_metrics_after(path, 2)
    assert path.read_bytes() == whole


def test_a_drop_that_is_interrupted_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = write_lines(path, [1, 2, 3])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_metrics_after(path, 1)
    assert path.read_bytes() == whole


def test_a_run_without_metrics_yet_can_be_resumed(tmp_path: Path) -> None:
    drop_metrics_after(tmp_path / "metrics.jsonl", 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OutOfResourcesError, match=r"metrics\.jsonl: cannot be written \(No space left on device\); "):
        append_metrics(path, {"x": 1.0}, step=1, epoch=0.1)


def test_the_final_evaluation_of_a_run_killed_before_its_end_is_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"train/loss": 1.0}, step=4, epoch=1)
    append_metrics(path, {"test/accuracy": 0.5}, step=4, epoch=1)  # of an epoch
    before = path.read_bytes()
    append_metrics(path, {"test/accuracy": 0.5, "test/class_accuracy/cat": 0.5}, step=4, epoch=1)
    append_metrics(path, {"own": 1.0}, step=4, epoch=1)  # of a callback, after it
    drop_metrics_after(path, 4)
    assert path.read_bytes() == before
