"""Folders of images as a data set: classes, sizes, splits, and what is said about files that are skipped or changed."""

import logging
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from cifar10_accel.data import image_folder
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import InputError, OutOfResourcesError, SettingsError
from cifar10_accel.settings import DataSettings

COLOURS = {"warm": (255, 0, 0), "cold one": (0, 0, 255)}


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """Folder with two classes, red and blue, with two training images and one test image each."""
    for split, count in (("train", 2), ("test", 1)):
        for name, colour in COLOURS.items():
            for number in range(count):
                picture(tmp_path / split / name / f"{number}.png", colour)
    return tmp_path


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Log messages of the package."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    found: list[str] = []
    handler, logger = Handler(), logging.getLogger("cifar10_accel")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def picture(
    path: Path, colour: tuple[int, ...] = (1, 2, 3), size: tuple[int, int] = (32, 32), mode: str = "RGB"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


def load(folder: Path, **values: Any) -> Dataset:
    return load_dataset(DataSettings(dataset="folder", data_dir=folder, **values), seed=0)


def test_folder_of_class_folders(image_dir: Path) -> None:
    (image_dir / "train" / "warm" / ".hidden.png").write_text("no image")
    (image_dir / "train" / "warm" / "notes.txt").write_text("no image")
    Image.new("RGB", (50, 70), (255, 9, 9)).save(image_dir / "train" / "warm" / "00 big.JPEG")
    shutil.rmtree(image_dir / "test" / "cold one")
    dataset = load(image_dir)
    assert (dataset.name, dataset.class_names, dataset.val) == ("folder", ("cold one", "warm"), None)
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.test.labels, [1])
    assert tuple(dataset.train.images[0, 0, 0]) == (0, 0, 255)
    np.testing.assert_allclose(dataset.train.images[3, 16, 16], (255, 9, 9), atol=4)
    assert tuple(dataset.train.images[4, 31, 31]) == (255, 0, 0)


@pytest.mark.parametrize("size", [8, 64, 256])
def test_images_of_another_size(image_dir: Path, size: int, lines: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image_dir / "train" / "warm" / "9.png")
    dataset = load(image_dir, image_size=size)
    assert dataset.train.images.shape == (5, size, size, 3)
    np.testing.assert_array_equal(dataset.train.images[4], pixels)
    assert f"{image_dir / 'train'}: 4 of 5 images resized to {size}x{size}" in lines


def test_what_is_changed_is_counted_once_in_a_line_for_each_kind(image_dir: Path, lines: list[str]) -> None:
    train = image_dir / "train"
    picture(train / "warm" / "a.png", size=(64, 64))
    picture(train / "warm" / "b.jpg", size=(60, 40))
    picture(train / "warm" / "c.webp", size=(20, 100))
    picture(train / "cold one" / "d.png", mode="L")
    picture(train / "cold one" / "e.gif", mode="P")
    picture(train / "cold one" / "f.jpg", mode="L", size=(40, 40))
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(train / "cold one" / "g.png")
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(train / "cold one" / "h.png")
    for _ in range(2):
        load(image_dir)
    assert sorted(lines) == [
        f"{train}: 1 of 12 images cropped by more than half, since their sides have a ratio above 2 (20% 1)",
        f"{train}: 1 of 12 images cropped to the square in their middle",
        f"{train}: 1 of 12 images laid over white, since they have an alpha channel",
        f"{train}: 1 of 12 images scaled to 8 bits per value (16-bit 1)",
        f"{train}: 4 of 12 images converted to RGB (grayscale 3, palette 1)",
        f"{train}: 4 of 12 images resized to 32x32",
    ]


def test_what_is_skipped_is_counted_once(image_dir: Path, lines: list[str]) -> None:
    warm = image_dir / "train" / "warm"
    for name in ("a.txt", "b.TXT", "Thumbs.db", "README", ".DS_Store", "._0.png", "c.svg"):
        (warm / name).write_text("no image")
    (warm / "more").mkdir()
    picture(image_dir / "train" / "stray.png")
    load(image_dir)
    assert lines == [
        f"{image_dir / 'train'}: 9 files skipped, no image (2 hidden, 2 .txt, "
        "1 outside of class folders, 1 no suffix, 1 .db, 1 .svg, 1 folder in a class folder)"
    ]


def test_phone_photos_are_skipped_with_what_they_need(
    image_dir: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (image_dir / "train" / "warm" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr(image_folder, "heif_is_installed", lambda: False)
    load(image_dir)
    assert "(1 .heic, pip install pillow-heif)" in lines[0]
    monkeypatch.setattr(image_folder, "heif_is_installed", lambda: True)
    with pytest.raises(InputError, match="HEIC"):
        load(image_dir)


@pytest.mark.parametrize("name", ["bird", "__MACOSX", "only hidden files", ".ipynb_checkpoints"])
@pytest.mark.parametrize("split", ["train", "test", "both"])
def test_a_folder_without_images_is_no_class(image_dir: Path, lines: list[str], name: str, split: str) -> None:
    for part in ("train", "test") if split == "both" else (split,):
        (image_dir / part / name).mkdir()
        (image_dir / part / name / "._0.png").write_text("metadata of macOS")
    if name.startswith("."):
        picture(image_dir / "train" / name / "0-checkpoint.png")
    dataset = load(image_dir)
    assert dataset.class_names == ("cold one", "warm")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1])
    said = [line for line in lines if "without images not counted as a class" in line]
    assert len(said) == (0 if name.startswith(".") else 2 if split == "both" else 1)
    assert all(name in line for line in said)


def test_a_class_without_test_images_is_said(image_dir: Path, lines: list[str]) -> None:
    shutil.rmtree(image_dir / "test" / "warm")
    assert load(image_dir).class_names == ("cold one", "warm")
    assert lines == [f"{image_dir / 'test'}: no images of 1 of 2 classes (warm); their accuracy is unknown"]


def test_a_name_is_one_class_however_its_accents_are_stored(image_dir: Path, lines: list[str]) -> None:
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    picture(image_dir / "train" / decomposed / "0.png", (9, 9, 9))
    picture(image_dir / "test" / composed / "0.png")
    dataset = load(image_dir)
    assert dataset.class_names == (composed, "cold one", "warm")
    assert (dataset.train.labels == 0).sum() == (dataset.test.labels == 0).sum() == 1
    assert lines == []
    picture(image_dir / "train" / composed / "1.png", (7, 7, 7))
    dataset = load(image_dir)
    assert dataset.class_names == (composed, "cold one", "warm")
    assert (dataset.train.labels == 0).sum() == 2
    assert lines == [
        f"{image_dir / 'train'}: two folders are named {composed}, with the accents stored in two forms; one class"
    ]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_hold_out_of_its_own(image_dir: Path, name: str) -> None:
    picture(image_dir / name / "warm" / "0.png", (5, 5, 5))
    dataset = load(image_dir)
    assert dataset.val is not None
    np.testing.assert_array_equal(dataset.val.labels, [1])
    assert tuple(dataset.val.images[0, 0, 0]) == (5, 5, 5)
    assert len(dataset.train) == 4
    with pytest.raises(SettingsError, match="val_size: 1, but"):
        load(image_dir, val_size=1)
    picture(image_dir / name / "lukewarm" / "0.png")
    with pytest.raises(InputError, match=f"{name}/lukewarm: class without training images"):
        load(image_dir)


def test_too_many_images_for_the_memory(image_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 6 * 64 * 64 * 3})())
    load(image_dir, image_size=64)
    monkeypatch.setattr(image_folder, "load_image", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(OutOfResourcesError, match=r"6 images of 65x65 need 0\.0 GB of memory.*smaller --image-size"):
        load(image_dir, image_size=65)


def test_unreadable_image_is_named(image_dir: Path) -> None:
    path = image_dir / "test" / "warm" / "bad.png"
    for fault in (b"this is not an image", b""):
        path.write_bytes(fault)
        with pytest.raises(InputError, match="^" + str(path)):
            load(image_dir)


def test_folders_that_are_no_data_set(image_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere/train: no such folder"):
        load(tmp_path / "nowhere")
    picture(image_dir / "test" / "lukewarm" / "0.png")
    with pytest.raises(InputError, match="lukewarm: class without training images"):
        load(image_dir)
    shutil.rmtree(image_dir / "test")
    (image_dir / "test" / "warm").mkdir(parents=True)
    with pytest.raises(InputError, match="test: contains no images"):
        load(image_dir)


def test_nothing_is_drawn_where_stderr_is_no_terminal(image_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_folder.time, "monotonic", lambda: next(ticks))
        load(image_dir)
    assert capsys.readouterr() == ("", "")


def test_long_reading_shows_progress_on_a_terminal(
    image_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    load(image_dir)
    assert capsys.readouterr().err == "", "drawn within the first second"
    ticks = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(image_folder.time, "monotonic", lambda: next(ticks))
        load(image_dir)
    assert str(image_dir / "train") in capsys.readouterr().err
