"""Loading of the data set of the settings: auto, downloads, the hold-out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_files import archive_of, archive_source, serving, use_small_files, write
from training_commands import run_python

from cifar10_accel.components import named_objects
from cifar10_accel.data import cifar_sources, datasets
from cifar10_accel.data.cifar_files import CIFAR10_BINARY, CIFAR10_PICKLED, CIFAR100, CIFAR100_PICKLED, NoDataError
from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.data.datasets import ensure_dataset, hold_out, load_dataset
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import DataSettings

Files = dict[str, dict[str, bytes]]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return use_small_files(monkeypatch)


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_sources, "SOURCES", {"cifar10": (), "cifar100": ()})
    datasets._warn_about_synthetic.cache_clear()


def settings(data_dir: Path, dataset: str = "cifar10", **values: Any) -> DataSettings:
    return DataSettings(dataset=dataset, data_dir=data_dir, **values)


def assert_same(one: Dataset, other: Dataset) -> None:
    for mine, yours in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(mine.images, yours.images)
        np.testing.assert_array_equal(mine.labels, yours.labels)


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
@pytest.mark.parametrize(("dataset", "title"), [("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")])
def test_error_for_missing_files_has_instructions(tmp_path: Path, dataset: str, title: str) -> None:
    archive = f"{title.lower()}-python.tar.gz"
    with pytest.raises(NoDataError, match=f"no {title}, .* get https://.*/{archive} .* put it into {tmp_path}"):
        load_dataset(settings(tmp_path, dataset), seed=0)


@pytest.mark.usefixtures("no_sources")
def test_cifar100_is_not_what_auto_or_cifar10_stands_for(files: Files, tmp_path: Path) -> None:
    write(tmp_path / CIFAR100_PICKLED.folder, files[CIFAR100_PICKLED.folder])
    assert ensure_dataset(settings(tmp_path, "cifar100")) == "cifar100"
    assert ensure_dataset(settings(tmp_path, "auto")) == "synthetic"
    with pytest.raises(NoDataError):
        ensure_dataset(settings(tmp_path, "cifar10"))


def test_missing_cifar100_is_downloaded(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        source = archive_source(server, archive_of(files[CIFAR100_PICKLED.folder]), CIFAR100)
        monkeypatch.setitem(cifar_sources.SOURCES, "cifar100", (source,))
        dataset = load_dataset(settings(tmp_path / "new", "cifar100"), seed=0)
    assert (dataset.name, len(dataset.class_names)) == ("cifar100", 100)
    assert (tmp_path / "new" / "cifar-100-python" / "meta").is_file()


@pytest.mark.usefixtures("no_sources")
def test_auto_uses_the_real_data_without_output(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / CIFAR10_BINARY.folder, files[CIFAR10_BINARY.folder])
    assert load_dataset(settings(tmp_path, "auto"), seed=0).name == "cifar10"
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("no_sources")
def test_read_only_data_is_enough(files: Files, tmp_path: Path) -> None:
    folder = write(tmp_path / CIFAR10_PICKLED.folder, files[CIFAR10_PICKLED.folder])
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


def test_a_hold_out_size_beside_a_hold_out_of_its_own_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = np.zeros((40, 16, 16, 3), np.uint8), np.arange(40) % 4
    own = Dataset(name="own", train=(images, labels), test=(images, labels), val=(images[:20], labels[:20]))
    with named_objects({"object:own": own}):
        load_dataset(settings(tmp_path, "object:own"), seed=0)
        assert capsys.readouterr().err == ""
        for _ in range(2):  # for the training and for its report
            loaded = load_dataset(settings(tmp_path, "object:own", val_size=7), seed=0)
    assert loaded.val is not None
    assert (len(loaded.train), len(loaded.val)) == (40, 20)
    said = "warning: val_size: 7 has no effect, object:own has a hold-out of its own; leave it out\n"
    assert capsys.readouterr().err == said
