"""The Python API as in a notebook: `fit` again and again, from a thread, and runs read back."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_commands import run_python

import cifar10_accel
from cifar10_accel import Dataset, Settings, fit, load_run
from cifar10_accel.errors import InputError, SettingsError

SMALL: dict[str, Any] = {
    "recipe": "smoke",
    "dataset": "synthetic",
    "synthetic_size": 200,
    "batch_size": 50,
    "epochs": 1,
    "num_threads": 1,
    "tracker": "none",
}


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.convolution(images).relu().amax(dim=(2, 3)))
        return logits


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, cifar10_accel\n"
        "assert 'fit' in dir(cifar10_accel)\n"
        "assert cifar10_accel.Settings(recipe='smoke').epochs == 3\n"
        "assert not {'torch', 'numpy', 'accelerate'} & set(sys.modules), 'a heavy library was imported'\n"
        "assert callable(cifar10_accel.fit)"
    )
    done = run_python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in set(cifar10_accel.__all__) - {"__version__"}:
        assert getattr(cifar10_accel, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Setings'"):
        cifar10_accel.Setings  # noqa: B018


class Closed:
    """A callback whose attributes cannot be read."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise OSError("closed")

    def on_fit_end(self, context: Any) -> None:
        """Nothing."""


def test_callbacks_that_cannot_be_named_are_one_line() -> None:
    with pytest.raises(SettingsError, match="callbacks: a Closed; give a list of callbacks"):
        fit(Settings(**SMALL), callbacks=Closed())
    with pytest.raises(SettingsError, match="callbacks: a NoneType; give a list"):
        fit(Settings(**SMALL), callbacks=None)
    with pytest.raises(InputError, match=r"callbacks: reading a Closed raised OSError \(closed\)"):
        fit(Settings(**SMALL), callbacks=[Closed()])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="precisions of a CPU")
def test_three_runs_with_other_models_and_precisions(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Net(10)
    before = [parameter.clone() for parameter in module.parameters()]
    runs = [
        fit(Settings(**SMALL, width=4, run_dir=tmp_path / "a")),
        fit(Settings(**SMALL, precision="bf16", run_dir=tmp_path / "b"), model=module),
        fit(Settings(**SMALL, run_dir=tmp_path / "c"), model=Net),
    ]
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    assert isinstance(runs[1].model, Net)
    for run in runs:
        stored = run.predictions("test")
        images = Settings(**SMALL)
        from cifar10_accel.data.datasets import load_dataset

        pixels = load_dataset(images, seed=0).test.images
        probabilities = run.predict(pixels)
        assert np.abs(probabilities - stored.probabilities).max() < (0.02 if run is runs[1] else 1e-4)
        normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - run.classifier.mean) / run.classifier.std
        with torch.inference_mode():
            assert (run.model(normalised).argmax(1).numpy() == probabilities.argmax(1)).all()
        assert run.summary["test/accuracy"] == stored.accuracy()
        assert repr(run).startswith(f"Run('{run.path}', test accuracy")


def test_any_number_of_images_is_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(Settings(**SMALL, run_dir=tmp_path / "run"))
    pixels = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3), np.uint8)
    expected = run.predict(pixels)
    monkeypatch.setattr("cifar10_accel.training.run.PREDICTED_AT_ONCE", 3)
    np.testing.assert_allclose(run.predict(pixels), expected, rtol=1e-5)
    assert run.predict(pixels[:0]).shape == (0, 10)
    with pytest.raises(InputError, match="predict: no images"):
        run.predict([])


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            signal.getsignal(signal.SIGTERM),
            signal.getsignal(signal.SIGINT),
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
            torch.random.get_rng_state().tolist(),
            float(torch.tensor([1e-40]) * 1),
        )

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = state()
        fit(Settings(**SMALL, width=4, run_dir=tmp_path / "run"))
        assert state() == before
        with pytest.raises(SettingsError):
            fit(Settings(**SMALL, width=4, run_dir=tmp_path / "run", max_lr=0.123))
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)


def test_fit_in_a_thread(tmp_path: Path) -> None:
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(fit(Settings(**SMALL, width=4, run_dir=tmp_path / "run")).summary["step"])
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [4]


def test_an_object_needs_no_name_but_must_be_given_again(tmp_path: Path) -> None:
    module = Net(10)
    run = fit(Settings(**SMALL, run_dir=tmp_path / "run"), model=module)
    assert run.settings.model.startswith("object:Net@")
    with pytest.raises(SettingsError, match="was given as a Python object; give it again"):
        load_run(run.path).model  # noqa: B018
    again = load_run(run.path, model=Net(10))
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert np.array_equal(again.predict(images), run.predict(images))
    torch.manual_seed(9)
    other = Net(10)
    with pytest.raises(SettingsError, match="model object:Net@"):  # other weights: another run
        fit(Settings(**SMALL, run_dir=tmp_path / "run"), model=other)


def test_a_run_on_disk_is_the_same_object(tmp_path: Path) -> None:
    run = fit(Settings(**SMALL, width=4, val_size=50, run_dir=tmp_path / "run"))
    read = load_run(tmp_path / "run")
    assert read.summary == run.summary
    assert read.settings == run.settings
    assert read.class_names == run.class_names
    assert len(read.predictions("val").label) == 50
    with pytest.raises(InputError, match="there is no split 'train'"):
        read.predictions("train")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="images are float64"):
        read.predict(np.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match="not a run folder"):
        load_run(tmp_path)


def test_a_data_set_object(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (100, 16, 16, 1), dtype=np.uint8)
    dataset = Dataset(name="mine", train=(images, np.arange(100) % 4), test=(images, np.arange(100) % 4))
    run = fit(Settings(**SMALL | {"dataset": "auto"}, width=4, run_dir=tmp_path / "run"), dataset=dataset)
    assert run.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert run.classifier.image_format == dataset.image_format


def test_an_unknown_component_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"fit: 'modle' is no component .did you mean 'model'"):
        fit(Settings(**SMALL), modle=Net)  # type: ignore[call-arg]


def test_settings_that_replace_others_read_the_recipe_again() -> None:
    settings = Settings(recipe="cpu", max_lr=0.123)
    assert settings.width == 32
    replaced = settings.replace(model="torch.nn:Identity")
    assert replaced.max_lr == 0.123
    assert "width" in replaced.unused()
    assert settings.replace(recipe="resnet9").width == 64
    assert Settings().resolve().recipe in ("cpu", "resnet9")
