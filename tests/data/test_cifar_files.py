"""Reading of the official CIFAR files: order, damaged and malicious files."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_files import (
    CIFAR100_CLASSES,
    CIFAR100_IMAGES,
    IMAGES_PER_BATCH,
    pickled,
    small_cifar100_arrays,
    use_small_files,
    write,
)

from cifar10_accel.data.cifar_files import (
    CIFAR10,
    CIFAR10_BINARY,
    CIFAR10_PICKLED,
    CIFAR100,
    CIFAR100_PICKLED,
    CifarFiles,
    FileFormat,
    NoDataError,
)
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.data.image_format import CIFAR100_IMAGES as CIFAR100_FORMAT
from cifar10_accel.errors import InputError
from cifar10_accel.settings import DataSettings

Files = dict[str, dict[str, bytes]]
CIFAR10_FORMATS = pytest.mark.parametrize(
    "file_format", [CIFAR10_PICKLED, CIFAR10_BINARY], ids=lambda file_format: file_format.folder
)
FORMATS = pytest.mark.parametrize(
    ("official", "file_format"),
    [(CIFAR10, CIFAR10_PICKLED), (CIFAR10, CIFAR10_BINARY), (CIFAR100, CIFAR100_PICKLED)],
    ids=["cifar10-pickled", "cifar10-binary", "cifar100"],
)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return use_small_files(monkeypatch)


def settings(data_dir: Path, dataset: str = "cifar10", **values: Any) -> DataSettings:
    return DataSettings(dataset=dataset, data_dir=data_dir, **values)


def assert_same(one: Dataset, other: Dataset) -> None:
    for mine, yours in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(mine.images, yours.images)
        np.testing.assert_array_equal(mine.labels, yours.labels)


@CIFAR10_FORMATS
def test_both_formats_give_the_images_in_the_official_order(
    files: Files, tmp_path: Path, file_format: FileFormat
) -> None:
    write(tmp_path / file_format.folder, files[file_format.folder])
    dataset = load_dataset(settings(tmp_path), seed=0)
    assert dataset.name == "cifar10"
    assert dataset.class_names == CIFAR10.class_names
    assert dataset.val is None
    assert (len(dataset.train), len(dataset.test)) == (5 * IMAGES_PER_BATCH, IMAGES_PER_BATCH)
    records = np.frombuffer(b"".join(files[CIFAR10_BINARY.folder].values()), np.uint8).reshape(-1, 3073)
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


def test_cifar100_gives_the_images_with_fine_labels_and_names_from_meta(files: Files, tmp_path: Path) -> None:
    write(tmp_path / CIFAR100_PICKLED.folder, files[CIFAR100_PICKLED.folder])
    dataset = load_dataset(settings(tmp_path, "cifar100"), seed=0)
    assert (dataset.name, dataset.val) == ("cifar100", None)
    assert dataset.class_names == tuple(CIFAR100_CLASSES)
    assert dataset.image_format == CIFAR100_FORMAT
    for split, num_images in ((dataset.train, CIFAR100_IMAGES["train"]), (dataset.test, CIFAR100_IMAGES["test"])):
        labels, pixels = small_cifar100_arrays(num_images)
        assert split.labels.dtype == np.int64
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        np.testing.assert_array_equal(split.labels, labels)
        for channel in range(3):
            np.testing.assert_array_equal(
                split.images[..., channel].reshape(-1, 1024), pixels[:, 1024 * channel : 1024 * (channel + 1)]
            )


def test_cifar100_has_a_hold_out_of_all_classes(files: Files, tmp_path: Path) -> None:
    write(tmp_path / CIFAR100_PICKLED.folder, files[CIFAR100_PICKLED.folder])
    dataset = load_dataset(settings(tmp_path, "cifar100", val_size=100), seed=0)
    assert dataset.val is not None
    np.testing.assert_array_equal(np.sort(dataset.val.labels), np.arange(100))
    np.testing.assert_array_equal(np.sort(dataset.train.labels), np.arange(100))
    assert (dataset.class_names, dataset.image_format) == (tuple(CIFAR100_CLASSES), CIFAR100_FORMAT)


@FORMATS
def test_data_dir_may_be_the_folder_itself(
    files: Files, tmp_path: Path, official: CifarFiles, file_format: FileFormat
) -> None:
    folder = write(tmp_path / file_format.folder, files[file_format.folder])
    name = official.dataset
    assert_same(load_dataset(settings(folder, name), seed=0), load_dataset(settings(tmp_path, name), seed=0))
    assert official.verify(folder) == official.verify(tmp_path)


def test_complete_folder_of_any_name(files: Files, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", files[CIFAR100_PICKLED.folder])
    assert CIFAR100.locate(folder) == (folder, CIFAR100_PICKLED)


@pytest.mark.parametrize("kind", ["class folders", "files"])
def test_other_train_and_test_are_no_cifar100(tmp_path: Path, kind: str) -> None:
    """`train` and `test` may be anything in a folder of another name; nobody is told to remove that folder."""
    for name in ("train", "test"):
        if kind == "class folders":
            (tmp_path / name / "a class").mkdir(parents=True)
        else:
            (tmp_path / name).write_text("echo something else")
    assert CIFAR100.locate(tmp_path) is None
    with pytest.raises(NoDataError, match=f"run `cifar10-accel data fetch --dataset cifar100 --data-dir {tmp_path}`$"):
        CIFAR100.verify(tmp_path)


@FORMATS
def test_verify_lists_every_file(files: Files, tmp_path: Path, official: CifarFiles, file_format: FileFormat) -> None:
    folder = write(tmp_path / file_format.folder, files[file_format.folder])
    expected = f"{file_format.algorithm.upper()} as published"
    assert official.verify(tmp_path) == [(folder / name, expected) for name in file_format.digests]


def test_verify_without_data(tmp_path: Path) -> None:
    with pytest.raises(NoDataError, match=f"{tmp_path}: no CIFAR-10 files; run `cifar10-accel data fetch --data-dir"):
        CIFAR10.verify(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "file_format", "position"),
    [
        ("cifar10", CIFAR10_PICKLED, 2),
        ("auto", CIFAR10_PICKLED, 2),
        ("cifar10", CIFAR10_BINARY, 5),
        ("auto", CIFAR10_BINARY, 0),
        ("cifar100", CIFAR100_PICKLED, 0),
        ("cifar100", CIFAR100_PICKLED, 2),
    ],
)
@pytest.mark.parametrize("fault", ["one bit", "truncated", "empty", "missing", "a folder"])
def test_damage_is_an_error_that_names_the_file(
    files: Files, tmp_path: Path, dataset: str, file_format: FileFormat, position: int, fault: str
) -> None:
    official = CIFAR100 if dataset == "cifar100" else CIFAR10
    folder = write(tmp_path / file_format.folder, files[file_format.folder])
    victim = folder / list(file_format.digests)[position]
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
    for read in (lambda: load_dataset(settings(tmp_path, dataset), seed=0), lambda: official.verify(tmp_path)):
        with pytest.raises(InputError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(str(victim))
        assert "\n" not in message
        assert f"run `{official.fetch_command}`" in message
        assert not isinstance(caught.value, NoDataError), "auto would hide it"
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
@pytest.mark.parametrize(
    ("file_format", "name", "key"),
    [
        (CIFAR10_PICKLED, "data_batch_2", b"labels"),
        (CIFAR100_PICKLED, "test", b"fine_labels"),
        (CIFAR100_PICKLED, "meta", b"fine_label_names"),
    ],
    ids=["cifar10", "cifar100 test", "cifar100 meta"],
)
def test_malicious_pickle_never_runs(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file_format: FileFormat,
    name: str,
    key: bytes,
    has_valid_digest: bool,
) -> None:
    evil = pickled({key: Marker(tmp_path / "marker"), b"data": None})
    write(tmp_path / file_format.folder, files[file_format.folder] | {name: evil})
    if has_valid_digest:
        monkeypatch.setitem(file_format.digests, name, hashlib.md5(evil).hexdigest())
    dataset = "cifar100" if file_format is CIFAR100_PICKLED else "cifar10"
    with pytest.raises(InputError, match=f"{name}: .*refers to posix.mkdir" if has_valid_digest else "damaged"):
        load_dataset(settings(tmp_path, dataset), seed=0)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["system", "eval", "getattr"])
def test_no_other_name_is_unpickled(name: str) -> None:
    module = b"os" if name == "system" else b"builtins"
    with pytest.raises(InputError, match=rf"\.{name}, which a batch does not need"):
        CIFAR10.parse_pickle(b"c" + module + b"\n" + name.encode() + b"\n.", Path("data_batch_1"))


GOOD_LABELS = [0] * IMAGES_PER_BATCH
GOOD_PIXELS = np.zeros((IMAGES_PER_BATCH, 3072), np.uint8)
CIFAR100_PIXELS = np.zeros((CIFAR100_IMAGES["test"], 3072), np.uint8)


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
        CIFAR10.parse_pickle(pickled(content), Path("data_batch_1"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({b"fine_labels": [100, *range(99)], b"data": CIFAR100_PIXELS}, "labels are 0 .. 100, expected 0 .. 99"),
        ({b"fine_labels": [0] * 100, b"data": CIFAR100_PIXELS[:99]}, "expected uint8 of shape .100, 3072."),
        ({b"coarse_labels": [0] * 100, b"data": CIFAR100_PIXELS}, "is not a CIFAR-100 batch .KeyError"),
        ({b"labels": [0] * 100, b"data": CIFAR100_PIXELS}, "is not a CIFAR-100 batch .KeyError"),
    ],
)
def test_content_that_is_no_batch_of_cifar100(files: Files, content: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"^test: .*{reason}"):
        CIFAR100.parse_pickle(pickled(content), Path("test"))


CLASSES = [name.encode() for name in CIFAR100_CLASSES]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({b"fine_label_names": CLASSES[1:]}, "has 99 class names, 99 of them different, expected 100"),
        ({b"fine_label_names": [*CLASSES[1:], CLASSES[5]]}, "has 100 class names, 99 of them different"),
        ({b"fine_label_names": range(100)}, "has no class names .UnpicklingError: it refers to builtins.range"),
        ({b"fine_label_names": list(range(100))}, "has no class names .AttributeError"),
        ({b"coarse_label_names": CLASSES}, "has no class names .KeyError"),
        ([], "has no class names .TypeError"),
    ],
)
def test_meta_without_the_class_names(content: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"^meta: {reason}"):
        CIFAR100.parse_class_names(pickled(content), Path("meta"))


def test_records_that_are_no_batch(files: Files) -> None:
    with pytest.raises(InputError, match="has 61459 bytes, expected 61460"):
        CIFAR10.parse_records(bytes(20 * 3073 - 1), Path("test_batch.bin"))
    with pytest.raises(InputError, match=r"labels are 255 \.\. 255"):
        CIFAR10.parse_records(b"\xff" * 20 * 3073, Path("test_batch.bin"))


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
