"""Prediction of image files of every kind, with one tiny run that all tests share."""

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
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == len(bad)
    for line, path in zip(lines, bad, strict=True):
        assert line.startswith(f"error: {path}: cannot be read as an image (")
    assert call("predict", run_folder, *good[:1], *bad[:1], "--skip-bad").exit_code == 0


def test_what_was_taken_of_an_image_is_said(run_folder: Path, tmp_path: Path) -> None:
    """Only a part of an animation, a document or a panorama is predicted; a small crop is not worth a word."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    files = {"a.gif": "the first of its 3 frames was used", "b.tif": "the first of its 3 frames was used", "c.png": ""}
    for name in ("a.gif", "b.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    picture(tmp_path / "c.png", size=(64, 33))
    picture(tmp_path / "d.png", size=(30, 120))
    files["d.png"] = "only the square in its middle was used, 25% of the image"
    done = call("predict", run_folder, *(tmp_path / name for name in files), "--format=json")
    assert done.exit_code == 0, done.output
    entries = json.loads(done.stdout)
    assert [entry.get("notes", []) for entry in entries] == [[words] if words else [] for words in files.values()]
    warnings = [f"warning: {tmp_path / name}: {words}" for name, words in files.items() if words]
    assert done.stderr.splitlines() == warnings


def test_a_folder_may_hold_other_files(run_folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "b/c.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(tmp_path / name, format="PNG")
    for name in ("._a.png", "notes.txt", "b/paper.pdf", "b/LICENSE"):
        (tmp_path / name).write_text("no image")
    done = call("predict", run_folder, tmp_path, "--format=json")
    assert done.exit_code == 0, done.output
    assert [Path(entry["file"]).name for entry in json.loads(done.stdout)] == ["a.png", "c.PNG"]
    assert done.stderr.startswith(f"warning: {tmp_path}: 3 files skipped, no image (1 ")
    (tmp_path / "b" / "drawing.svg").write_text("<svg/>")
    done = call("predict", run_folder, tmp_path)
    assert done.exit_code == 3
    assert f"error: {tmp_path / 'b' / 'drawing.svg'}: SVG is a drawing without pixels" in done.stderr


def test_a_run_on_other_images_gets_images_of_its_format(tmp_path: Path) -> None:
    """Files of the test images give the predictions of the run, at 48 pixels a side and with two classes."""
    for split, number in ((split, number) for split in ("train", "test") for number in range(16)):
        path = tmp_path / "data" / split / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((70, 48), 40 + 60 * (number % 2)).save(path)
    values = TINY | {"dataset": "folder", "data_dir": tmp_path / "data", "image_size": 48, "val_size": 0}
    fit(Settings(**values | {"batch_size": 8, "epochs": 1, "peak_epoch": 0.5}, run_dir=tmp_path / "run"))
    done = call("predict", tmp_path / "run", tmp_path / "data" / "test", "--format=json", f"--grad-cam={tmp_path}/maps")
    assert done.exit_code == 0, done.output
    found = {Path(entry["file"]): entry["classes"] for entry in json.loads(done.stdout)}
    written = Predictions.load(tmp_path / "run" / "predictions.npz").probabilities
    files = sorted((tmp_path / "data" / "test").rglob("*.png"))  # the order of the data set
    assert np.array([[found[path][name] for name in "ab"] for path in files]) == pytest.approx(written, abs=1e-5)
    pictures = list((tmp_path / "maps").iterdir())
    assert len(pictures) == 16
    assert {Image.open(path).size for path in pictures} == {(2 * 240, 240)}


@pytest.mark.parametrize("values", ["floats 0..1", "12 bits of 16, declared", "12 bits of 16", "floats 0..255"])
def test_values_that_are_not_8_bit_are_scaled_or_refused(run_folder: Path, tmp_path: Path, values: str) -> None:
    """An image with more bits is predicted as the same image with 8 bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    deep = {
        "floats 0..1": Image.fromarray(pixels.astype(np.float32) / 255),
        "floats 0..255": Image.fromarray(pixels.astype(np.float32)),
    }.get(values, Image.fromarray(pixels.astype(np.uint16) << 4))
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    deep.save(tmp_path / "deep.tif", tiffinfo={281: 4095} if "declared" in values else {})
    done = call("predict", run_folder, tmp_path / "plain.png", tmp_path / "deep.tif", "--format=json")
    plain, found = (entry["classes"] for entry in json.loads(done.stdout))
    if values in ("12 bits of 16", "floats 0..255"):
        assert (done.exit_code, found) == (3, {})
        assert "expected 0 to 1" in done.stderr or "their true range is not known" in done.stderr
    else:
        assert (done.exit_code, found) == (0, plain)


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
