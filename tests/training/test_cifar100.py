"""The recipe `cifar100` on small official files: trained, reported, evaluated, exported and resumed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from official_files import CIFAR100_CLASSES, use_small_files, write
from safetensors.numpy import load_file

from cifar10_accel.cli import main
from cifar10_accel.data import cifar_sources
from cifar10_accel.data.cifar_files import CIFAR100_PICKLED
from cifar10_accel.data.image_format import CIFAR100_IMAGES, ImageFormat
from cifar10_accel.errors import InputError
from cifar10_accel.runs.saved_run import SavedRun
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

SMALL: dict[str, Any] = {
    "recipe": "cifar100",
    "width": 4,
    "batch_size": 50,
    "epochs": 2,
    "peak_epoch": 1,
    "val_size": 100,
    "num_threads": 1,
    "tracker": "none",
}


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with small official files, which are the only source of CIFAR-100."""
    with pytest.MonkeyPatch.context() as patch:
        files = use_small_files(patch)
        patch.setitem(cifar_sources.SOURCES, "cifar100", ())
        data_dir = tmp_path_factory.mktemp("data")
        write(data_dir / CIFAR100_PICKLED.folder, files[CIFAR100_PICKLED.folder])
        yield data_dir


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(Settings(**SMALL, data_dir=data_dir, run_dir=folder))
    return folder


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def test_summary_and_page(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["dataset"], summary["step"]) == ("cifar100", 4)
    names = [name.removeprefix("test/class_accuracy/") for name in summary if "class_accuracy" in name]
    assert names == CIFAR100_CLASSES
    saved = SavedRun.load(run)
    assert saved.class_names() == CIFAR100_CLASSES
    assert saved.test is not None
    assert saved.test.probabilities.shape == (100, 100)
    page = (run / "report.html").read_text()
    assert "CIFAR-100" in page
    assert [name for name in CIFAR100_CLASSES if name not in page] == []


def test_page_is_written_again(run: Path) -> None:
    (run / "report.html").unlink()
    done = invoke("report", run)
    assert done.exit_code == 0, done.output
    assert (run / "report.html").stat().st_size > 0


def test_saved_run_reads_the_data_set_without_a_download(run: Path, tmp_path: Path) -> None:
    dataset = SavedRun.load(run).dataset()
    assert (dataset.name, dataset.class_names) == ("cifar100", tuple(CIFAR100_CLASSES))
    assert dataset.image_format == CIFAR100_IMAGES
    elsewhere = SavedRun.load(run, data_dir=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no CIFAR-100 in .*nowhere.*data fetch --dataset cifar100 --data-dir"):
        elsewhere.dataset()
    assert not (tmp_path / "nowhere").exists()


def test_evaluate_finds_the_same_accuracy(run: Path) -> None:
    done = invoke("evaluate", run, "--json")
    assert done.exit_code == 0, done.output
    summary, found = json.loads((run / "summary.json").read_text()), json.loads(done.stdout)
    for name in ("test/accuracy", "test/accuracy_tta", "val/accuracy"):
        assert found[name] == pytest.approx(summary[name], abs=1e-6), name


def test_tables_on_the_terminal_have_the_worst_classes(run: Path) -> None:
    done = invoke("evaluate", run)
    assert done.exit_code == 0, done.output
    assert "the 20 of 100 classes with the lowest accuracy" in done.stdout
    assert done.stdout.count("\n│ class_") == 20
    done = invoke("robustness", run, "--images", 50)
    assert "the 20 of 100 classes with the highest error" in done.stdout
    assert done.stdout.count("\n│ class_") == 20


def test_exported_weights_have_an_output_per_class(run: Path, tmp_path: Path) -> None:
    done = invoke("export", run, "--format", "safetensors", "--out", tmp_path / "model.safetensors")
    assert done.exit_code == 0, done.output
    assert "class equal on 100 of 100 test images" in done.stdout
    assert 100 in {array.shape[0] for array in load_file(tmp_path / "model.safetensors").values() if array.ndim == 2}


def test_onnx_has_an_output_per_class_and_the_normalisation_of_cifar100(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    done = invoke("export", run, "--format", "onnx", "--out", tmp_path / "model.onnx")
    assert done.exit_code == 0, done.output
    saved = SavedRun.load(run)
    assert saved.test is not None
    pixels = saved.dataset().test.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (logits,) = session.run(None, {"images": pixels})  # of images in 0..1: the normalisation is part of the graph
    assert logits.shape == (100, 100)
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, saved.test.probabilities, atol=1e-6)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == CIFAR100_CLASSES
    assert ImageFormat.from_json(json.loads(metadata["images"])) == CIFAR100_IMAGES


def test_resume_ends_with_the_same_predictions(run: Path, data_dir: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "data_dir": data_dir, "run_dir": tmp_path / "stopped"}
    fit(Settings(**settings, max_steps=3))
    fit(Settings(**settings))
    whole, resumed = (np.load(folder / "predictions.npz") for folder in (run, tmp_path / "stopped"))
    np.testing.assert_array_equal(whole["probabilities"], resumed["probabilities"])
