"""doctor: every fault is found and has a remedy, and correct settings have none."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from training_commands import TINY, flags, run_python

from cifar10_accel.commands import doctor_checks, throughput
from cifar10_accel.commands.doctor import bottleneck, examine, expected
from cifar10_accel.commands.doctor_checks import Check
from cifar10_accel.commands.throughput import Throughput
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.setup import RunSetup


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "MEASURE_SECONDS", 0.1)


def examined(**changes: Any) -> dict[str, Check]:
    """Return the checks of tiny settings, by the text before the colon."""
    return {check.text.split(":")[0]: check for check in examine(Settings(**(TINY | changes)))}


def test_correct_settings_pass_and_nothing_is_written(tmp_path: Path) -> None:
    found = examined()
    assert [check.text for check in found.values() if check.level == "error"] == []
    assert list(found) == [
        "launch",
        "device",
        "precision",
        "accelerate",
        "port",
        "data",
        "run folder",
        "tracking",
        "augmentation",
        "disk",
        "speed",
        "expected",
    ]
    assert "SYNTHETIC" in found["data"].text
    assert "18 steps" in found["expected"].text
    assert "loader" in found["speed"].text
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_data(tmp_path: Path) -> None:
    found = examined(dataset="cifar10", data_dir=tmp_path / "none")
    assert (found["data"].level, found["data"].exit_code) == ("error", 3)
    assert found["data"].remedy == f"run `cifar10-accel data fetch --data-dir {tmp_path / 'none'}`"
    assert "speed" not in found
    found = examined(dataset="auto", data_dir=tmp_path / "none")
    assert found["data"].level == "warning"
    assert "speed" in found  # with synthetic images
    batches = tmp_path / "bad" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    (batches / "data_batch_1").write_bytes(b"not a batch")
    found = examined(dataset="cifar10", data_dir=tmp_path / "bad")
    assert (found["data"].level, "data_batch_1" in found["data"].text) == ("error", True)
    assert examined(dataset="folder", data_dir="/nowhere")["rank 0"].exit_code == 3


def test_settings_that_do_not_fit_together() -> None:
    found = examined(batch_size=500)
    assert "batch_size: 500 is more than the 360" in found["rank 0"].text


def test_run_folder(tmp_path: Path) -> None:
    settings = Settings(**(TINY | {"run_dir": tmp_path / "run"}))
    folder = RunFolder.of(settings)
    assert "is new" in doctor_checks.run_folder(settings).text
    folder.open(settings)
    assert "is running" in doctor_checks.run_folder(settings).text
    with folder.record_status(is_main=True):
        pass
    assert doctor_checks.run_folder(settings).level == "ok"
    assert "other settings" in doctor_checks.run_folder(settings.model_copy(update={"seed": 3})).text
    assert (
        "cannot be written" in doctor_checks.run_folder(settings.model_copy(update={"run_dir": Path("/proc/x")})).text
    )


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(free=1000))
    levels = [doctor_checks.disk(Settings(**TINY), checkpoint_bytes=size).level for size in (100, 300, 400)]
    assert levels == ["ok", "warning", "error"]  # two are kept and one is being written
    assert doctor_checks.tensor_bytes({"a": [torch.zeros(3), {"b": torch.zeros(2, dtype=torch.int64)}], "c": 1.0}) == 28


def test_stale_default_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator(Settings(**TINY))
    path = tmp_path / "default_config.yaml"
    monkeypatch.setattr(doctor_checks, "default_config_file", str(path))
    assert doctor_checks.default_config(accelerator).level == "ok"
    path.write_text("num_processes: 4\nmixed_precision: 'no'\n")
    found = doctor_checks.default_config(accelerator)
    assert (found.level, "has num_processes 4 (here 1)" in found.text) == ("warning", True)
    assert "--config_file accelerate_config.yaml" in found.remedy
    path.write_text("num_processes: 1\n")
    assert doctor_checks.default_config(accelerator).level == "ok"
    path.write_text("{")
    assert "not valid YAML" in doctor_checks.default_config(accelerator).text


def test_port(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator(Settings(**TINY))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor_checks, "DEFAULT_PORT", taken.getsockname()[1])
        assert doctor_checks.port(accelerator).level == "warning"


def test_precision_is_that_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**TINY)
    accelerator = make_accelerator(settings)
    assert "products in float32" in doctor_checks.precision(accelerator, settings).text
    monkeypatch.setattr(doctor_checks, "training_dtype", lambda accelerator: torch.bfloat16)
    assert doctor_checks.precision(accelerator, settings).level == "error"


def test_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    online = Settings(**(TINY | {"tracker": "wandb", "wandb_mode": "online"}))
    found = doctor_checks.tracker(online)
    assert (found.level, "nobody is logged in" in found.text) == ("warning", True)
    assert "W&B, offline" in doctor_checks.tracker(Settings(**(TINY | {"tracker": "wandb"}))).text
    monkeypatch.setattr(doctor_checks, "wandb_mode", lambda wanted: "online")
    monkeypatch.setattr(doctor_checks, "wandb_server", lambda: "http://127.0.0.1:9")
    assert "does not respond" in doctor_checks.tracker(online).text


class _SameInEveryEpoch(doctor_checks.AugmentedImages):
    def __getitem__(self, epoch_and_index: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        return super().__getitem__((0, epoch_and_index[1]))


class _OtherInEachWorker(doctor_checks.AugmentedImages):
    def __getitem__(self, epoch_and_index: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        image, label, index = super().__getitem__(epoch_and_index)
        return image + os.getpid(), label, index


def test_augmentation_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**(TINY | {"augment_backend": "albumentations", "num_workers": 2}))
    dataset = load_dataset(settings, seed=0)
    assert doctor_checks.augmentation(settings, dataset).level == "ok"
    monkeypatch.setattr(doctor_checks, "AugmentedImages", _SameInEveryEpoch)
    assert "two epochs have the same" in doctor_checks.augmentation(settings, dataset).text
    monkeypatch.setattr(doctor_checks, "AugmentedImages", _OtherInEachWorker)
    assert "two workers produce different" in doctor_checks.augmentation(settings, dataset).text


def test_the_bottleneck_is_named() -> None:
    settings = Settings(**(TINY | {"augment_backend": "albumentations", "max_steps": 6}))
    memory = {"memory_bytes": 10**9, "gpu_bytes": 0}
    serial = Throughput(loader_seconds=0.06, model_seconds=0.03, in_workers=False, **memory)
    workers = Throughput(loader_seconds=0.06, model_seconds=0.03, in_workers=True, **memory)
    accelerator, dataset = make_accelerator(settings), load_dataset(settings, seed=0)
    setup = RunSetup(accelerator, settings, dataset)
    found = bottleneck(serial, setup)
    assert "loader 1,000 images/s, model 2,000 images/s" in found.text
    assert ("67% of a step" in found.text, found.level) == (True, "warning")
    assert "the loader is the bottleneck" in bottleneck(workers, setup).text
    for found_speed, duration in ((serial, "9.0 s"), (workers, "6.0 s")):
        hundred = settings.model_copy(update={"max_steps": 100, "epochs": 100})
        setup = RunSetup(accelerator, hundred, dataset)
        assert f"about {duration} for 100 steps" in expected(found_speed, setup).text
        smaller = hundred.model_copy(update={"low_res_fraction": 0.5})  # measured with images of full size
        assert f"at most {duration} for" in expected(found_speed, RunSetup(accelerator, smaller, dataset)).text


def test_half_a_launch(tmp_path: Path) -> None:
    done = run_python("-m", "cifar10_accel", "doctor", *flags(TINY), cwd=tmp_path, WORLD_SIZE="2")
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("error    launch: ")
    assert "accelerate launch" in done.stdout
    assert "data: SYNTHETIC" in done.stdout  # checks that need no other rank are made all the same


# One rank cannot read the data, as on a machine where the disk is not mounted.
BROKEN = """
import os
from cifar10_accel.commands import doctor
from cifar10_accel.cli import main
from cifar10_accel.errors import InputError
load_dataset = doctor.load_dataset
def broken(*args, **kwargs):
    if os.environ["RANK"] == "1":
        raise InputError("the disk is not there")
    return load_dataset(*args, **kwargs)
doctor.load_dataset = broken
main()
"""


def test_two_ranks_and_one_that_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    done = run_python("-m", "cifar10_accel", "doctor", *flags(TINY), cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert "launch: 2 process(es), WORLD_SIZE 2, joined by gloo" in done.stdout
    assert done.stdout.count("expected: about") == 1
    done = run_python("broken.py", "doctor", *flags(TINY), cwd=tmp_path, num_processes=2, timeout=100)
    assert done.returncode != 0
    assert done.stdout.count("error    rank 1: the disk is not there") == 1
