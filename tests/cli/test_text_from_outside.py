"""Names of files, runs and classes that are markup, or that stdout cannot encode: every command shows them as they are.

One training in a process of its own, with an ASCII stdout, leaves a run that all other commands then read.
"""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from training_commands import run_python

from cifar10_accel.cli import main

# Markup of rich, another alphabet, and bytes that are not UTF-8; with the text that an ASCII terminal shows.
CLASSES = {"[bold]y": "[bold]y", "[x": "[x", "café": r"caf\xe9", os.fsdecode(b"n\xe9t"): r"n\xe9t"}
RUN = Path("runs[red]", "wd[bold] é")
ASCII_RUN = r"runs[red]/wd[bold] \xe9"
TRAINING = [
    *("--recipe=smoke", "--dataset=folder", "--data-dir=data[link]", "--width=4", "--batch-size=8", "--val-size=8"),
    *("--epochs=2", "--peak-epoch=1", "--num-threads=1", "--tracker=none", "--eval-batch-size=8"),
]
SMALL = ["--recipe=smoke", "--synthetic-size=200", "--width=4", "--max-steps=2", "--num-threads=1", "--tracker=none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, images and a finished run, all with such names."""
    folder = tmp_path_factory.mktemp("outside")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(CLASSES):
            class_folder = folder / "data[link]" / split / name
            class_folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 64, (32, 32, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(class_folder / f"{number}.png")
    pictures = folder / "photos[b]"
    pictures.mkdir()
    for name in ("[i]a.png", "é.png", os.fsdecode(b"\xe9.png")):
        Image.new("RGB", (40, 40), "teal").save(pictures / name, "PNG")
    (pictures / "[red]broken.png").write_text("no image")
    done = run_python(
        *("-m", "cifar10_accel", "train", *TRAINING, f"--run-dir={RUN}"), cwd=folder, PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    assert f"report: {ASCII_RUN}/report.html" in done.stdout
    assert set(CLASSES.values()) <= set(done.stdout.split())
    return folder


def run(folder: Path, *args: str | Path, code: int = 0, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a command prints to an ASCII stdout, where Click writes é as UTF-8 and rich as an escape."""
    monkeypatch.chdir(folder)
    done: Result = CliRunner(charset="ascii").invoke(main, list(map(str, args)), env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output_bytes.decode(errors="replace")


def plain(shown: str) -> str:
    """Return the text with é for its escape."""
    return shown.replace(r"\xe9", "é")


def test_results_of_the_run_are_complete(folder: Path) -> None:
    assert json.loads((folder / RUN / "status.json").read_text())["state"] == "finished"
    page = (folder / RUN / "report.html").read_text()
    assert all(name in page for name in ("[bold]y", "[x", "café", r"n\xe9t"))
    assert (folder / RUN / "misclassified.png").exists() or (folder / RUN / "confusion.png").exists()


def test_evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = plain(run(folder, "evaluate", RUN, monkeypatch=monkeypatch))
    assert shown.startswith(str(RUN))
    assert {"[bold]y", "[x", "café", "nét"} <= set(shown.split())


def test_predict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = plain(run(folder, "predict", RUN, "photos[b]", "--top=4", code=3, monkeypatch=monkeypatch))
    for text in ("[i]a.png", "é.png", r"\udce9.png", "[bold]y", "café", "nét"):
        assert text in shown, text
    assert "error: photos[b]/[red]broken.png" in shown
    for form in ("csv", "json"):
        printed = run(folder, "predict", RUN, "photos[b]", f"--format={form}", "--skip-bad", monkeypatch=monkeypatch)
        printed = printed.split("error: ")[0]
        if form == "csv":
            assert "[bold]y" in {row["class"] for row in csv.DictReader(io.StringIO(printed))}
        else:
            assert {Path(entry["file"]).name for entry in json.loads(printed)} >= {"é.png", os.fsdecode(b"\xe9.png")}


def test_grad_cam_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "cam[x] é"
    image = folder / "photos[b]" / os.fsdecode(b"\xe9.png")
    run(folder, "predict", RUN, image, f"--grad-cam={out}", monkeypatch=monkeypatch)
    assert len(list(out.iterdir())) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["runs", "runs[red]"], ["wd[bold] é"]),
        (["report", RUN], [f"{RUN}/report.html"]),
        (["compare", RUN, RUN, "--out=[c].html"], ["page: [c].html", "wd[bold] é"]),
        (["export", RUN, "--format=safetensors", "--out=[e] é.safetensors"], ["[e] é.safetensors"]),
        (["export", RUN, "--format=hub", "--out=[h] é"], ["[h] é"]),
        (["data", "preview", *TRAINING, "--index=0", "--epoch=0", "--out=[p] é.png"], ["[p] é.png"]),
        (["doctor", *SMALL, "--run-name=[d] é"], ["[d] é"]),
        (["lr-range", *SMALL, "--steps=12", "--out=[l] é"], ["[l] é/lr_range.png"]),
        (["launch-config", "[a] é.yaml"], ["[a] é.yaml"]),
        (["train", *SMALL, "--run-name=[t] é"], ["run folder runs/[t] é"]),
        (["repeat", *SMALL, "--seeds=1", "--run-name=[s] é"], ["[s] é"]),
        (["robustness", RUN, "--images=4"], ["[bold]y", "café"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_commands(
    args: list[str | Path], expected: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if args[0] == "robustness":
        pytest.importorskip("torchvision")
    shown = plain(run(folder, *args, monkeypatch=monkeypatch))
    assert all(text in shown for text in expected), shown


def test_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for args in (
        ["evaluate", "[/b] é"],
        ["train", "--dataset=folder", "--data-dir=[/b] é", "--tracker=none"],
        ["train", "--recipe=[/b] é.yaml"],
        ["predict", RUN, "[/b] é"],
        ["sweep", "run", "[/b] é"],
    ):
        code = 2 if "sweep" in args or "--recipe=[/b] é.yaml" in args else 3
        assert "[/b] é" in plain(run(folder, *args, code=code, monkeypatch=monkeypatch))


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--run-dir=OUT"],
        ["train", "--data-dir=OUT"],
        ["train", "--run-name=OUT"],
        ["export", RUN, "--format=hub", "--out=OUT"],
        ["predict", RUN, "photos[b]", "--grad-cam=OUT"],
        ["compare", RUN, RUN, "--out=OUT"],
        ["lr-range", "--out=OUT"],
        ["verify-resume", "--dir=OUT"],
        ["sweep", "run", "sweep.yaml", "--dir=OUT"],
        ["launch-config", "OUT"],
    ],
    ids=lambda args: args[0],
)
def test_results_are_not_written_to_a_path_that_is_not_utf8(
    args: list[str | Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many libraries cannot write there, so the command says so before its work."""
    given = [str(arg).replace("OUT", os.fsdecode(b"n\xe9w")) for arg in args]
    shown = run(folder, *given, code=2, monkeypatch=monkeypatch)
    assert "UTF-8" in shown or "unicode" in shown
    assert not (folder / os.fsdecode(b"n\xe9w")).exists()


@pytest.mark.long
def test_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    agent = '["${env}", "${interpreter}", "-m", "cifar10_accel.train", "${args}"]'
    lines = [
        *(
            "name: '[s]é'",
            f"command: {agent}",
            "program: cifar10_accel.train",
            "method: grid",
            "metric: {name: val/accuracy, goal: maximize}",
        ),
        *("parameters:", "  momentum: {values: [0.5, 0.6]}", "  val_size: {value: 20}"),
        *(f"  {flag[2:].replace('-', '_')}: {{value: {value}}}" for flag, value in (flag.split("=") for flag in SMALL)),
    ]
    (folder / "[sweep].yaml").write_text("\n".join(lines))
    shown = plain(run(folder, "sweep", "run", "[sweep].yaml", "--dir=runs/[sweep]", monkeypatch=monkeypatch))
    assert "[s]é: 2 trials" in shown
    assert "in runs/[sweep]" in shown
