"""Prediction of image files of every kind, and export, with one tiny run that all tests share."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.commands import export as export_module
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.data.synthetic import CLASS_NAMES
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(Settings(**TINY, ema_decay=0.5, run_dir=folder))
    return folder


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_it_predicts_what_the_run_predicted(run_folder: Path) -> None:
    """With averaged weights and normalisation, the probabilities of the test set equal those that the run wrote."""
    model = Classifier.from_run(run_folder)
    images = load_dataset(Settings(**TINY), seed=0).test.images
    written = Predictions.load(run_folder / "predictions.npz").probabilities
    assert model.probabilities(torch.from_numpy(images)).numpy() == pytest.approx(written, abs=1e-5)


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 50), **options: Any) -> Path:
    """Write a picture of noise in that mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def test_folders_and_patterns_are_searched_in_natural_order(run_folder: Path, tmp_path: Path) -> None:
    names = ["a/img2.png", "a/img10.png", "a/deep/er/img1.jpg", "b [1]/x.png", "b [1]/*.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not an image")

    def found(*args: str) -> list[str]:
        done = call("predict", run_folder, *(tmp_path / arg for arg in args), "--format=json")
        assert done.exit_code == 0, done.output
        return [str(Path(entry["file"]).relative_to(tmp_path)) for entry in json.loads(done.stdout)]

    assert found("a") == ["a/deep/er/img1.jpg", "a/img2.png", "a/img10.png"]
    assert found("a/img*.png", "a/deep") == ["a/img2.png", "a/img10.png", "a/deep/er/img1.jpg"]
    assert found("**/*.jpg") == ["a/deep/er/img1.jpg"]
    assert found("b [1]/*.png") == ["b [1]/*.png"]  # a file of that name is that file
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "a/*.webp"):
        done = call("predict", run_folder, tmp_path / nothing)
        assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
        assert done.stderr.startswith(f"error: {tmp_path / nothing}: no image files there")


def test_any_readable_image_is_predicted_and_the_others_are_named(run_folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    good = [
        picture(tmp_path / "plain.png"),
        picture(tmp_path / "grey.png", "L"),
        picture(tmp_path / "alpha.png", "RGBA"),
        picture(tmp_path / "print.jpg", "CMYK"),
        picture(tmp_path / "palette.gif", "P"),
        picture(tmp_path / "turned.jpg", exif=exif),
        picture(tmp_path / "one.png", size=(1, 1)),
        picture(tmp_path / "wide.png", size=(400, 3)),
        picture(tmp_path / "Kätzchen \u732b.png"),
    ]
    Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    good.append(tmp_path / "deep.png")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(picture(tmp_path / "whole.jpg", size=(300, 300)).read_bytes()[:800])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    bad = [
        cut,
        tmp_path / "text.png",
        tmp_path / "empty.png",
        tmp_path / "missing.png",
        tmp_path / "bomb.png",
    ]

    done = call("predict", run_folder, *good[:3], *bad, *good[3:], "--format=json")
    assert done.exit_code == 3, done.output
    found = {entry["file"]: entry for entry in json.loads(done.stdout)}
    assert len(found) == len(good) + len(bad)
    for path in good:
        probabilities = list(found[str(path)]["classes"].values())
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert set(found[str(path)]["classes"]) <= set(CLASS_NAMES)
    lines = done.stderr.splitlines()
    assert len(lines) == len(bad)
    for line, path in zip(lines, bad, strict=True):
        assert line.startswith(f"error: {path}: cannot be read as an image (")
    assert call("predict", run_folder, *good[:1], *bad[:1], "--skip-bad").exit_code == 0


def test_table_and_csv(run_folder: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    rows = list(csv.DictReader(io.StringIO(call("predict", run_folder, path, "--top=99", "--format=csv").stdout)))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 11)]
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-4)
    shown = call("predict", run_folder, path)
    assert shown.exit_code == 0
    assert rows[0]["class"] in shown.stdout


def test_what_is_no_run_is_refused(run_folder: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    for command in (["predict", tmp_path, path], ["export", tmp_path, "--format=hub", "--out=x"]):
        done = call(*command)
        assert done.exit_code == 3
        assert "no checkpoint there" in done.stderr
    done = call("export", run_folder, "--format=hub", f"--out={tmp_path}")
    assert done.exit_code == 2
    assert "exists already" in done.stderr


@pytest.mark.parametrize("form", ["safetensors", "onnx", "torch-export", "hub"])
def test_an_export_behaves_like_the_run(form: str, run_folder: Path, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / "models" / f"net.{ {'torch-export': 'pt2', 'hub': 'folder'}.get(form, form) }"
    done = call("export", run_folder, f"--format={form}", f"--out={out}")
    assert done.exit_code == 0, done.output
    assert "class equal on 80 of 80 test images" in done.stdout
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    for path in (out, *out.rglob("*")):
        assert path.is_dir() or path.stat().st_mode & 0o044 == 0o044, f"only its owner can read {path.name}"
    if form == "hub":
        assert {path.name for path in out.iterdir()} >= {"README.md", "config.json", "model.safetensors"}
        card = (out / "README.md").read_text()
        accuracy = json.loads((run_folder / "summary.json").read_text())["test/accuracy"]
        assert f"{accuracy:.2%}" in card
        assert "not CIFAR-10" in card
        assert Classifier.from_pretrained(out).class_names == CLASS_NAMES


def test_an_export_that_is_another_model_is_not_kept(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an export that lacks the normalisation."""

    def broken(model: Classifier, run: Any, path: Path) -> export_module.Function:
        path.write_text("a model")
        return model.model

    monkeypatch.setitem(export_module.WRITERS, "onnx", broken)
    done = call("export", run_folder, "--format=onnx", f"--out={tmp_path / 'net.onnx'}")
    assert done.exit_code == 3
    assert "another model (class equal on" in done.stderr
    assert not list(tmp_path.glob("*net.onnx"))
