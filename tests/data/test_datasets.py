"""Reading of data sets: official files, damaged and malicious files, the hold-out, folders of images."""

import hashlib
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_files import IMAGES_PER_BATCH, pickled, use_small_files, write
from PIL import Image
from training_commands import run_python

from cifar10_accel.data import cifar10_files, datasets, download, image_folder
from cifar10_accel.data.datasets import Dataset, Split, hold_out, load_dataset
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.settings import DataSettings

Files = dict[str, dict[str, bytes]]
FORMATS = pytest.mark.parametrize(
    "file_format", [cifar10_files.PICKLED, cifar10_files.BINARY], ids=lambda file_format: file_format.folder
)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return use_small_files(monkeypatch)


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SOURCES", ())
    datasets._warn_about_synthetic.cache_clear()


def settings(data_dir: Path, dataset: str = "cifar10", **values: Any) -> DataSettings:
    return DataSettings(dataset=dataset, data_dir=data_dir, **values)


def assert_same(one: Dataset, other: Dataset) -> None:
    for mine, yours in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(mine.images, yours.images)
        np.testing.assert_array_equal(mine.labels, yours.labels)


# --- the official files ---


@FORMATS
def test_both_formats_give_the_images_in_the_official_order(
    files: Files, tmp_path: Path, file_format: cifar10_files.FileFormat
) -> None:
    write(tmp_path / file_format.folder, files[file_format.folder])
    dataset = load_dataset(settings(tmp_path), seed=0)
    assert dataset.name == "cifar10"
    assert dataset.class_names == cifar10_files.CLASS_NAMES
    assert dataset.val is None
    assert (len(dataset.train), len(dataset.test)) == (5 * IMAGES_PER_BATCH, IMAGES_PER_BATCH)
    records = np.frombuffer(b"".join(files[cifar10_files.BINARY.folder].values()), np.uint8).reshape(-1, 3073)
    for split, expected in ((dataset.train, records[:-IMAGES_PER_BATCH]), (dataset.test, records[-IMAGES_PER_BATCH:])):
        assert split.labels.dtype == np.int64
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        np.testing.assert_array_equal(split.labels, expected[:, 0])
        # A record holds 1024 red values, row by row, then the green and the blue ones.
        for channel, start in enumerate((1, 1025, 2049)):
            np.testing.assert_array_equal(
                split.images[..., channel].reshape(-1, 1024), expected[:, start : start + 1024]
            )


@FORMATS
def test_data_dir_may_be_the_folder_itself(files: Files, tmp_path: Path, file_format: cifar10_files.FileFormat) -> None:
    folder = write(tmp_path / file_format.folder, files[file_format.folder])
    assert_same(load_dataset(settings(folder), seed=0), load_dataset(settings(tmp_path), seed=0))
    assert cifar10_files.verify(folder) == cifar10_files.verify(tmp_path)


@FORMATS
def test_verify_lists_every_file(files: Files, tmp_path: Path, file_format: cifar10_files.FileFormat) -> None:
    folder = write(tmp_path / file_format.folder, files[file_format.folder])
    expected = f"{file_format.algorithm.upper()} as published"
    assert cifar10_files.verify(tmp_path) == [(folder / name, expected) for name in file_format.digests]


def test_verify_without_data(tmp_path: Path) -> None:
    with pytest.raises(cifar10_files.NoDataError, match=f"{tmp_path}: no CIFAR-10 files; run"):
        cifar10_files.verify(tmp_path)


@FORMATS
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
@pytest.mark.parametrize("fault", ["one bit", "truncated", "empty", "missing", "a folder"])
def test_damage_is_an_error_that_names_the_file(
    files: Files, tmp_path: Path, file_format: cifar10_files.FileFormat, dataset: str, fault: str
) -> None:
    folder = write(tmp_path / file_format.folder, files[file_format.folder])
    victim = folder / list(file_format.digests)[2]
    content = victim.read_bytes()
    victim.unlink()
    if fault == "one bit":
        content = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    elif fault == "truncated":
        content = content[: len(content) // 2]
    elif fault == "empty":
        content = b""
    if fault == "a folder":
        victim.mkdir()
    elif fault != "missing":
        victim.write_bytes(content)
    for read in (lambda: load_dataset(settings(tmp_path, dataset), seed=0), lambda: cifar10_files.verify(tmp_path)):
        with pytest.raises(InputError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(str(victim))
        assert "\n" not in message
        assert "cifar10-accel data fetch" in message
        assert not isinstance(caught.value, cifar10_files.NoDataError), "auto would hide it"
        if fault in ("one bit", "truncated", "empty"):
            assert hashlib.new(file_format.algorithm, content).hexdigest() in message
            assert file_format.digests[victim.name] in message


class Marker:
    """Its pickle creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("has_valid_digest", [False, True])
def test_malicious_pickle_never_runs(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_valid_digest: bool
) -> None:
    evil = pickled({b"labels": Marker(tmp_path / "marker"), b"data": None})
    files[cifar10_files.PICKLED.folder]["data_batch_2"] = evil
    write(tmp_path / cifar10_files.PICKLED.folder, files[cifar10_files.PICKLED.folder])
    if has_valid_digest:
        monkeypatch.setitem(cifar10_files.PICKLED.digests, "data_batch_2", hashlib.md5(evil).hexdigest())
    with pytest.raises(InputError, match="refers to posix.mkdir" if has_valid_digest else "damaged"):
        load_dataset(settings(tmp_path), seed=0)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["system", "eval", "getattr"])
def test_no_other_name_is_unpickled(name: str) -> None:
    module = b"os" if name == "system" else b"builtins"
    with pytest.raises(InputError, match=rf"\.{name}, which a batch does not need"):
        cifar10_files.parse_pickle(b"c" + module + b"\n" + name.encode() + b"\n.", Path("data_batch_1"))


GOOD_LABELS = [0] * IMAGES_PER_BATCH
GOOD_PIXELS = np.zeros((IMAGES_PER_BATCH, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({b"labels": [*GOOD_LABELS[1:], 10], b"data": GOOD_PIXELS}, "labels are 0 .. 10, expected 0 .. 9"),
        ({b"labels": [*GOOD_LABELS[1:], -1], b"data": GOOD_PIXELS}, "labels are -1 .. 0, expected 0 .. 9"),
        ({b"labels": GOOD_LABELS[1:], b"data": GOOD_PIXELS}, "labels are int64 of shape .19,., expected 20"),
        ({b"labels": [0.5] * IMAGES_PER_BATCH, b"data": GOOD_PIXELS}, "labels are float64"),
        (
            {b"labels": GOOD_LABELS, b"data": GOOD_PIXELS[1:]},
            r"shape \(19, 3072\), expected uint8 of shape \(20, 3072\)",
        ),
        ({b"labels": GOOD_LABELS, b"data": GOOD_PIXELS[:, 1:]}, r"shape \(20, 3071\), expected"),
        ({b"labels": GOOD_LABELS, b"data": GOOD_PIXELS.astype(np.int64)}, "data is int64"),
        ({b"labels": GOOD_LABELS}, "is not a CIFAR-10 batch .KeyError"),
        ([1, 2], "is not a CIFAR-10 batch .TypeError"),
    ],
)
def test_content_that_is_no_batch(files: Files, content: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"^data_batch_1: .*{reason}"):
        cifar10_files.parse_pickle(pickled(content), Path("data_batch_1"))


def test_records_that_are_no_batch(files: Files) -> None:
    with pytest.raises(InputError, match="has 61459 bytes, expected 61460"):
        cifar10_files.parse_records(bytes(20 * 3073 - 1), Path("a.bin"))
    with pytest.raises(InputError, match=r"labels are 255 \.\. 255"):
        cifar10_files.parse_records(b"\xff" * 20 * 3073, Path("a.bin"))


def test_the_real_data(real_data_dir: Path) -> None:
    dataset = load_dataset(settings(real_data_dir, "auto"), seed=0)
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("cifar10", 50_000, 10_000)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [1000] * 10)
    for channel, (mean, std) in enumerate([(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]):
        shares = np.bincount(dataset.train.images[..., channel].ravel(), minlength=256) / (50_000 * 1024)
        values = np.arange(256) / 255
        assert shares @ values == pytest.approx(mean, abs=1e-4)
        assert np.sqrt(shares @ (values - mean) ** 2) == pytest.approx(std, abs=1e-4)
    names = [dataset.class_names[label] for label in dataset.train.labels[:5]]
    assert names == ["frog", "truck", "truck", "deer", "automobile"]


# --- auto ---


@pytest.mark.usefixtures("no_sources")
def test_auto_without_data_is_synthetic_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auto = load_dataset(settings(tmp_path, "auto", synthetic_size=200), seed=1)
    load_dataset(settings(tmp_path, "auto", synthetic_size=200), seed=1)
    assert auto.name == "synthetic"
    assert (len(auto.train), len(auto.test)) == (200, 40)
    assert_same(auto, load_dataset(settings(tmp_path, "synthetic", synthetic_size=200), seed=1))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("WARNING: SYNTHETIC DATA") == 1
    assert "cifar-10-python.tar.gz" in output.err


@pytest.mark.usefixtures("no_sources")
def test_error_for_missing_cifar10_has_instructions(tmp_path: Path) -> None:
    with pytest.raises(cifar10_files.NoDataError, match=f"put it into {tmp_path}"):
        load_dataset(settings(tmp_path), seed=0)


@pytest.mark.usefixtures("no_sources")
def test_auto_uses_the_real_data_without_output(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / cifar10_files.BINARY.folder, files[cifar10_files.BINARY.folder])
    assert load_dataset(settings(tmp_path, "auto"), seed=0).name == "cifar10"
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("no_sources")
def test_read_only_data_is_enough(files: Files, tmp_path: Path) -> None:
    folder = write(tmp_path / cifar10_files.PICKLED.folder, files[cifar10_files.PICKLED.folder])
    before = sorted(tmp_path.rglob("*"))
    load_dataset(settings(folder), seed=0)
    assert sorted(tmp_path.rglob("*")) == before, "reading wrote something"


# --- the hold-out ---


def numbered(labels: list[int]) -> Split:
    """Return a split whose images contain their number."""
    images = np.zeros((len(labels), 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0, :2] = np.stack([np.arange(len(labels)) // 256, np.arange(len(labels)) % 256], axis=1)
    return Split(images, np.array(labels, dtype=np.int64))


def numbers(split: Split) -> list[int]:
    return [int(high) * 256 + int(low) for high, low in split.images[:, 0, 0, :2]]


@pytest.mark.parametrize("val_size", [1, 7, 100, 123, 999])
def test_hold_out_is_a_stratified_partition(val_size: int) -> None:
    whole = numbered([number % 3 for number in range(600)] + [3] * 400)
    train, val = hold_out(whole, val_size=val_size, seed=5)
    assert len(val) == val_size
    assert numbers(train) == sorted(numbers(train))
    assert sorted(numbers(train) + numbers(val)) == list(range(1000))
    shares = np.bincount(val.labels, minlength=4) - val_size * np.array([0.2, 0.2, 0.2, 0.4])
    assert abs(shares).max() <= 1
    for part in (train, val):
        np.testing.assert_array_equal(part.labels, whole.labels[numbers(part)])


def test_hold_out_is_a_function_of_the_seed() -> None:
    whole = numbered([number % 10 for number in range(1000)])
    one, same, other = (numbers(hold_out(whole, val_size=100, seed=seed)[1]) for seed in (1, 1, 2))
    assert one == same
    assert len(set(one) & set(other)) < 30, "about 10 are expected by chance"


def test_larger_hold_out_contains_the_smaller() -> None:
    whole = numbered([number % 10 for number in range(1000)])
    small, large = (set(numbers(hold_out(whole, val_size=size, seed=1)[1])) for size in (50, 200))
    assert small < large


@pytest.mark.parametrize("val_size", [200, 10**9])
def test_hold_out_that_leaves_nothing(tmp_path: Path, val_size: int) -> None:
    with pytest.raises(SettingsError, match=f"val_size: {val_size} leaves nothing of 200"):
        load_dataset(settings(tmp_path, "synthetic", synthetic_size=200, val_size=val_size), seed=0)


def test_hold_out_leaves_the_test_set_alone(tmp_path: Path) -> None:
    without = load_dataset(settings(tmp_path, "synthetic", synthetic_size=200), seed=0)
    with_val = load_dataset(settings(tmp_path, "synthetic", synthetic_size=200, val_size=50), seed=0)
    assert without.val is None
    assert with_val.val is not None
    assert (len(with_val.train), len(with_val.val)) == (150, 50)
    np.testing.assert_array_equal(with_val.test.images, without.test.images)


# --- folders of images ---


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """Folder with two classes, red and blue, with two training images and one test image each."""
    for split, count in (("train", 2), ("test", 1)):
        for name, colour in (("warm", (255, 0, 0)), ("cold one", (0, 0, 255))):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), colour).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_folder_of_class_folders(image_dir: Path) -> None:
    (image_dir / "train" / "warm" / ".hidden.png").write_text("no image")
    (image_dir / "train" / "warm" / "notes.txt").write_text("no image")
    Image.new("RGB", (50, 70), (255, 9, 9)).save(image_dir / "train" / "warm" / "00 big.JPEG")
    shutil.rmtree(image_dir / "test" / "cold one")
    dataset = load_dataset(settings(image_dir, "folder"), seed=0)
    assert (dataset.name, dataset.class_names) == ("folder", ("cold one", "warm"))
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.test.labels, [1])
    assert tuple(dataset.train.images[0, 0, 0]) == (0, 0, 255)
    np.testing.assert_allclose(dataset.train.images[3, 16, 16], (255, 9, 9), atol=4)
    assert tuple(dataset.train.images[4, 31, 31]) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("L", (32, 32), 77), "png", (77, 77, 77)),
        (Image.new("RGBA", (32, 32), (255, 0, 0, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (32, 32), (1, 2, 3, 255)), "webp", (1, 2, 3)),
        (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "jpg", (254, 0, 0)),
        (Image.new("RGB", (32, 32), (10, 200, 30)).quantize(), "gif", (10, 200, 30)),
        (Image.fromarray(np.full((32, 32), 0x8000, np.uint16)), "png", (128, 128, 128)),
        (Image.new("1", (32, 32), 1), "png", (255, 255, 255)),
        (Image.new("RGB", (1, 1), (5, 6, 7)), "png", (5, 6, 7)),
        (Image.new("RGB", (640, 3), (5, 6, 7)), "bmp", (5, 6, 7)),
    ],
    ids=["grey", "transparent", "opaque", "cmyk", "palette", "16 bit", "1 bit", "1x1", "640x3"],
)
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, ...]
) -> None:
    path = tmp_path / f"\u00e9t\u00e9.{suffix}"
    image.save(path, lossless=True) if suffix == "webp" else image.save(path)
    array = image_folder.read_image(path)
    assert array.shape == (32, 32, 3)
    assert array.dtype == np.uint8
    np.testing.assert_allclose(array.reshape(-1, 3), np.broadcast_to(expected, (1024, 3)), atol=2)


def test_photo_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: display the image rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    array = image_folder.read_image(tmp_path / "photo.png")
    assert array[:, 16:].min() == 255
    assert array[:, :16].max() == 0


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header declares a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("fault", ["text", "empty", "truncated", "bomb", "large", "folder"])
def test_unreadable_image_is_named(image_dir: Path, fault: str) -> None:
    path = image_dir / "train" / "warm" / "bad.png"
    whole = image_dir / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    if fault == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "text": b"this is not an image",
                "empty": b"",
                "truncated": whole.read_bytes()[:2000],
                "bomb": png_that_claims(20_000, 20_000),
                "large": png_that_claims(9_000, 9_000),
            }[fault]
        )
    with pytest.raises(InputError, match="^" + str(path)) as caught:
        load_dataset(settings(image_dir, "folder"), seed=0)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_data_set(image_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere/train: no such folder"):
        load_dataset(settings(tmp_path / "nowhere", "folder"), seed=0)
    (image_dir / "test" / "lukewarm").mkdir()
    with pytest.raises(InputError, match="lukewarm: class without training images"):
        load_dataset(settings(image_dir, "folder"), seed=0)
    shutil.rmtree(image_dir / "test")
    (image_dir / "test" / "warm").mkdir(parents=True)
    with pytest.raises(InputError, match="test: contains no images"):
        load_dataset(settings(image_dir, "folder"), seed=0)


# --- cost ---


def test_loading_imports_no_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cifar10_accel.data.datasets import load_dataset; "
        "from cifar10_accel.settings import DataSettings; "
        f"settings = DataSettings(dataset='synthetic', data_dir=Path({str(tmp_path)!r}), synthetic_size=100); "
        "load_dataset(settings, seed=0); "
        "print([name for name in ('torch', 'requests', 'pyarrow', 'PIL', 'rich') if name in sys.modules])"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr
