"""Losses, optimizers, schedules, trackers, augmentations and data sets that are not built in; built-in schedules."""

import json
import math
from collections import deque
from pathlib import Path
from typing import Any, ClassVar

import albumentations as A
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.tracking import GeneralTracker, on_main_process
from torch import Tensor, nn
from trainings import bits_of

from cifar10_accel import Dataset, Settings, fit
from cifar10_accel.data.augment.batched import normalize
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.training.optimization.loss import make_loss
from cifar10_accel.training.optimization.lr_schedule import make_schedule
from cifar10_accel.training.run import Run
from cifar10_accel.training.state import some_training_images

SMALL: dict[str, Any] = {
    "recipe": "smoke",
    "dataset": "synthetic",
    "synthetic_size": 200,
    "batch_size": 50,
    "width": 4,
    "epochs": 2,
    "num_threads": 1,
    "tracker": "none",
}
HERE = __name__


def train(folder: Path, **changes: Any) -> Run:
    return fit(Settings(**SMALL | {"run_dir": folder} | changes))


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in run.metrics if "train/loss" in row]


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


class PerImage(nn.Module):
    """Cross-entropy of each image; the class gets the number of classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        assert num_classes == 10

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


class LearnedScale(nn.Module):
    """A loss with a parameter, which nothing would train."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(logits, labels)


def raising_loss(logits: Tensor, labels: Tensor) -> Tensor:
    raise KeyError("weights")


def number_loss(logits: Tensor, labels: Tensor) -> float:
    return 1.0


def test_a_loss_of_ones_own_gives_the_bits_of_the_built_in_one(tmp_path: Path) -> None:
    expected = losses(train(tmp_path / "built-in"))
    assert losses(train(tmp_path / "function", loss=f"{HERE}:plain_cross_entropy")) == expected
    assert losses(train(tmp_path / "class", loss=f"{HERE}:PerImage")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": f"{HERE}:raising_loss"}, InputError, "loss: .*raising_loss raised KeyError"),
        (
            {"loss": f"{HERE}:LearnedScale"},
            SettingsError,
            "loss: .* has the parameter 'scale', but the optimizer trains",
        ),
        ({"loss": f"{HERE}:number_loss"}, InputError, "returned a float, not a tensor"),
        ({"loss": f"{HERE}:PerImage", "label_smoothing": 0.1}, SettingsError, "label_smoothing: .* does not take it"),
        ({"class_weights": "1,2"}, SettingsError, "2 weights for 10 classes"),
        ({"optimizer": f"{HERE}:losses"}, InputError, "optimizer: "),
        ({"optimizer": "torch.optim:RMSprop", "optimizer_args": {"alfa": 1}}, SettingsError, "does not take 'alfa'"),
        ({"optimizer": "torch.optim:RMSprop", "nesterov": True}, SettingsError, "nesterov: .* does not take it"),
        ({"optimizer_args": {"alpha": 1}}, SettingsError, "'sgd' is built in"),
        ({"schedule": f"{HERE}:negative"}, InputError, "returned -1.0 for step 0"),
        ({"schedule": f"{HERE}:HERE"}, SettingsError, "is a str, not a function"),
        ({"augment": f"{HERE}:plain_cross_entropy"}, SettingsError, "augment: .* needs 'logits'"),
        ({"augment": f"{HERE}:HERE"}, InputError, "gave a str"),
        ({"tracker": f"{HERE}:Nothing"}, SettingsError, "has no 'Nothing'"),
    ],
)
def test_wrong_components_are_one_line(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        train(tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)


def test_a_failed_start_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        train(tmp_path / "run", optimizer="torch.optim:RMSprop", optimizer_args={"alfa": 1})
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert "does not take 'alfa'" in status["reason"]


def test_a_folder_whose_first_start_failed_takes_the_corrected_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        train(tmp_path / "run", optimizer="torch.optim:RMSprop", optimizer_args={"alfa": 1})
    run = train(tmp_path / "run", optimizer="torch.optim:RMSprop", optimizer_args={"alpha": 0.9}, max_lr=1e-3)
    assert run.settings.optimizer_args == {"alpha": 0.9}


def test_class_weights(tmp_path: Path) -> None:
    equal = losses(train(tmp_path / "plain"))
    assert losses(train(tmp_path / "ones", class_weights=[1.0] * 10)) == pytest.approx(equal, rel=1e-4)
    uneven = losses(train(tmp_path / "other", class_weights=[1.0] * 9 + [5.0]))
    assert uneven != pytest.approx(equal, rel=1e-4)
    scaled = losses(train(tmp_path / "scaled", class_weights=[2.0] * 9 + [10.0]))
    assert scaled == pytest.approx(uneven, rel=1e-4)


def test_a_weighted_loss_is_the_mean_of_those_of_micro_batches() -> None:
    dataset = load_dataset(Settings(**SMALL), seed=0)
    loss = make_loss(Settings(class_weights=[1.0] * 9 + [5.0]), dataset, device=torch.device("cpu"))
    logits, labels = torch.randn(8, 10), torch.tensor([9, 9, 9, 1, 2, 3, 4, 5])
    halves = [loss(logits[part], labels[part]) for part in (slice(0, 4), slice(4, 8))]
    assert float(sum(halves)) / 2 == pytest.approx(float(loss(logits, labels)), rel=1e-5)


class NormAndDropout(nn.Module):
    """A model whose results differ between training and evaluation mode; it is given in the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(4 * 30 * 30, 10)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images))
        return logits


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}], ids=str)
def test_a_model_in_evaluation_mode_is_trained_in_training_mode(changes: dict[str, Any], tmp_path: Path) -> None:
    given = {key: value for key, value in SMALL.items() if key != "width"} | {"model": f"{HERE}:NormAndDropout"}
    straight = fit(Settings(**given | changes, run_dir=tmp_path / "straight"))
    assert straight.model.layers[1].num_batches_tracked == 8
    fit(Settings(**given | changes, max_steps=6, run_dir=tmp_path / "stopped"))
    resumed = fit(Settings(**given | changes, run_dir=tmp_path / "stopped"))
    weights = [{k: v for k, v in bits_of(run.path).items() if "/model/" in k} for run in (straight, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("optimizer", ["torch.optim:RMSprop", "torch.optim:Adam", "torch.optim:NAdam"])
def test_optimizers_of_torch_train_and_resume_with_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    settings = {"optimizer": optimizer, "max_lr": 0.003}
    straight = train(tmp_path / "straight", **settings)
    train(tmp_path / "stopped", max_steps=3, **settings)
    resumed = train(tmp_path / "stopped", **settings)
    assert straight.summary["test/loss"] == resumed.summary["test/loss"]
    assert all("momentum" not in row for row in straight.metrics)


@pytest.mark.parametrize("model", ["timm:resnet18", "torchvision.models:resnet18"])
def test_models_of_other_libraries_resume_with_the_same_bits(model: str, tmp_path: Path) -> None:
    pytest.importorskip(model.partition(":")[0].partition(".")[0])
    settings = {**SMALL, "synthetic_size": 100, "model": model}
    del settings["width"]
    straight = fit(Settings(**settings, run_dir=tmp_path / "straight"))
    fit(Settings(**settings, max_steps=3, run_dir=tmp_path / "stopped"))
    resumed = fit(Settings(**settings, run_dir=tmp_path / "stopped"))
    weights = [{k: v for k, v in bits_of(run.path).items() if "/model/" in k} for run in (straight, resumed)]
    assert weights[0] == weights[1]


def negative(step: int, total_steps: int) -> float:
    return -1.0


def falling(step: int, total_steps: int) -> float:
    return 1 - step / total_steps


def test_a_schedule_of_ones_own_is_a_multiple_of_max_lr(tmp_path: Path) -> None:
    run = train(tmp_path / "run", schedule=f"{HERE}:falling", max_lr=0.2, log_every=1)
    assert [row["lr"] for row in run.metrics if "lr" in row] == pytest.approx([0.2 * (1 - s / 8) for s in range(8)])


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant", "warmup_stable_decay"])
def test_built_in_schedules(schedule: str) -> None:
    settings = Settings(schedule=schedule, epochs=10, peak_epoch=2, max_lr=0.5, div_factor=5, decay_fraction=0.3)
    made = make_schedule(settings, steps_per_epoch=100)
    lrs = [made.lr_at(step) for step in range(1000)]
    assert lrs[0] == pytest.approx(0.1)
    assert lrs[200] == max(lrs) == pytest.approx(0.5)
    assert lrs[100] == pytest.approx(0.3)  # half of the linear warm-up
    final = 0.1 / 1e4
    middle = {
        "one_cycle": 0.5 + (final - 0.5) * 400 / 799,
        "cosine": final + (0.5 - final) * (1 + math.cos(math.pi * 400 / 799)) / 2,
        "constant": 0.5,
        "warmup_stable_decay": 0.5,
    }[schedule]
    assert lrs[600] == pytest.approx(middle)
    assert lrs[-1] == pytest.approx(0.5 if schedule == "constant" else final)
    if schedule == "warmup_stable_decay":
        assert lrs[699] == pytest.approx(0.5)
        assert lrs[850] == pytest.approx(0.25, rel=0.02)


class ListTracker(GeneralTracker):
    name, requires_logging_directory = "list", False
    logged: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self) -> list[dict[str, Any]]:
        return self.logged

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.logged.append({"max_lr": values["max_lr"], "run": self.run_name})

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append(values | {"step": step})


@pytest.mark.parametrize("as_object", [False, True])
def test_a_tracker_of_ones_own_gets_the_metrics(as_object: bool, tmp_path: Path) -> None:
    ListTracker.logged.clear()
    if as_object:
        fit(Settings(**SMALL, run_dir=tmp_path / "run"), tracker=ListTracker("run"))
    else:
        train(tmp_path / "run", tracker=f"{HERE}:ListTracker")
    assert ListTracker.logged[0]["run"] == "run"
    assert any("train/loss" in values for values in ListTracker.logged)


def brighter() -> list[A.BasicTransform]:
    return [A.RandomBrightnessContrast(p=1.0)]


def blur(image_size: int) -> list[A.BasicTransform]:
    assert image_size == 32
    return [A.GaussianBlur(p=1.0)]


@pytest.mark.parametrize("augment", [f"{HERE}:brighter", f"flip,{HERE}:blur"])
def test_augmentations_of_ones_own(augment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        own = losses(train(tmp_path / "own", augment=augment, num_workers=2))
    assert own != losses(train(tmp_path / "plain", augment="none"))
    assert own == losses(train(tmp_path / "again", augment=augment, num_workers=0))
    assert ("Albumentations augments single images" in caplog.text) is ("blur" in augment)


@pytest.mark.parametrize(("size", "channels"), [(64, 3), (16, 1)])
def test_images_of_other_sizes_and_channels(size: int, channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = (random.integers(0, 80, (120, size, size, channels)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    dataset = Dataset(name="own", train=(images, labels), test=(images, labels), class_names=["a", "b", "c"])
    changes = {"recipe": "cpu", "epochs": 6, "low_res_size": 12, "tta": "multicrop", "batch_size": 20, "max_lr": 0.1}
    run = fit(Settings(**SMALL | changes | {"dataset": "auto"}, run_dir=tmp_path / "run"), dataset=dataset)
    assert run.summary["test/accuracy"] > 0.5
    assert (run.path / "report.html").exists()
    probabilities = run.predict(images[:5])
    assert np.allclose(probabilities, run.predictions().probabilities[:5], atol=1e-4)


def test_small_images_that_a_model_does_not_take_are_one_line(tmp_path: Path) -> None:
    given = {name: value for name, value in SMALL.items() if name != "width"} | {"low_res_fraction": 0.5}
    with pytest.raises(
        SettingsError, match=r"low_res_size: \S+:NormAndDropout does not take images of 16 pixels"
    ) as own:
        fit(Settings(**given, model=f"{HERE}:NormAndDropout", low_res_size=16, run_dir=tmp_path / "own"))
    assert "RuntimeError (mat1 and mat2 shapes cannot be multiplied" in str(own.value)
    assert str(own.value).endswith("give --low-res-fraction 0, or another --low-res-size")
    with pytest.raises(SettingsError, match="low_res_size: airbench94 does not take images of 8 pixels"):
        train(tmp_path / "built-in", model="airbench94", whitening=True, low_res_fraction=0.5, low_res_size=8)


def test_auto_is_no_recipe_of_another_model() -> None:
    """The LRs of `cpu` are those of its own model."""
    for model, recipe in {f"{HERE}:NormAndDropout": "resnet9", "timm:resnet18": "resnet9", "airbench94": "cpu"}.items():
        assert Settings(model=model).resolve_recipe(on_cpu=True).recipe == recipe
        assert Settings(model=model).resolve_recipe(on_cpu=False).recipe == "resnet9"


def drawn(seed: int, image_size: int = 12) -> Dataset:
    random, labels = np.random.default_rng(seed), np.arange(60) % 3
    images = random.integers(0, BRIGHTEST, (60, image_size, image_size, 1), np.uint8)
    return Dataset(name="drawn", train=(images, labels), test=(images, labels))


BRIGHTEST = 256


def drawn_at(image_size: int) -> Dataset:
    return drawn(0, image_size)


def test_a_data_set_function_keeps_its_default_size() -> None:
    settings = Settings(**SMALL | {"dataset": f"{HERE}:drawn"})
    assert load_dataset(settings, seed=0).image_format.size == 12
    assert load_dataset(settings.replace(image_size=9), seed=0).image_format.size == 9
    assert load_dataset(settings.replace(image_size=9, dataset=f"{HERE}:drawn_at"), seed=0).image_format.size == 9
    with pytest.raises(SettingsError, match="needs 'image_size'; set --image-size, or give it a default"):
        load_dataset(settings.replace(dataset=f"{HERE}:drawn_at"), seed=0)


def test_a_run_whose_data_set_has_changed_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"dataset": f"{HERE}:drawn", "batch_size": 20, "augment": "flip"}
    train(tmp_path / "run", **changes, max_steps=3)
    monkeypatch.setattr(f"{HERE}.BRIGHTEST", 128)
    with pytest.raises(SettingsError, match=rf"\(other images of {HERE}:drawn\)"):
        train(tmp_path / "run", **changes)
    monkeypatch.undo()
    assert train(tmp_path / "run", **changes).summary["step"] == 6


def test_sizes_that_the_images_do_not_have(tmp_path: Path) -> None:
    for size in (32, 40):
        with pytest.raises(SettingsError, match=f"cutout_size: {size}, but the images have 32 pixels"):
            train(tmp_path / "a", cutout_size=size, augment="cutout")
    with pytest.raises(SettingsError, match="low_res_size: 32 is not below the 32 pixels"):
        train(tmp_path / "b", low_res_size=32, low_res_fraction=0.5)
    with pytest.raises(SettingsError, match="image_size: 64, but the images of synthetic are 32"):
        train(tmp_path / "c", image_size=64)


def ungrouped(params: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for group in params for parameter in group["params"]], lr)


def test_an_optimizer_may_group_the_parameters_itself(tmp_path: Path) -> None:
    run = train(tmp_path / "run", optimizer=f"{HERE}:ungrouped", max_lr=0.01)
    assert run.summary["step"] == 8


def test_the_optimizer_gets_groups_whose_decay_is_that_of_the_settings() -> None:
    from cifar10_accel.training.optimization.optimizer import make_optimizer

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    settings = Settings(optimizer="torch.optim:RMSprop", weight_decay=0.01, decay_norm_and_bias=False)
    optimizer = make_optimizer(model, settings)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


@pytest.mark.parametrize(("side", "num_images"), [(16, 4100), (32, 4100), (64, 2000), (256, 130)])
def test_whitening_reads_two_million_pixels_of_images_of_any_size(side: int, num_images: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (num_images, side, side, 1), dtype=np.uint8)
    arrays, image_format = (images, np.arange(num_images) % 3), ImageFormat(side, 1, (0.5,), (0.25,))
    dataset = Dataset(name="own", train=arrays, test=arrays, image_format=image_format)
    chosen = some_training_images(dataset, torch.device("cpu"))
    stride = {16: 2, 32: 2, 64: 4, 256: 4}[side]  # of at most 32 pixels, 2000 images
    expected = normalize(torch.from_numpy(images[::stride]).permute(0, 3, 1, 2), torch.float32, image_format)
    assert torch.equal(chosen, expected)
    assert chosen.numel() < 1.1 * 2000 * 32**2


class Uncopied(nn.Sequential):
    """A model that cannot be copied, as one with a lock."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("cannot pickle '_thread.lock' object")


def test_a_model_that_cannot_be_copied_has_no_average(tmp_path: Path) -> None:
    values = {name: value for name, value in SMALL.items() if name != "width"} | {"model": f"{HERE}:Uncopied"}
    assert fit(Settings(**values, run_dir=tmp_path / "plain", max_steps=2)).summary["step"] == 2
    with pytest.raises(InputError, match=r"copying .*:Uncopied for ema_decay raised TypeError \(cannot pickle"):
        fit(Settings(**values, run_dir=tmp_path / "averaged", ema_decay=0.9))


class Forgetful(torch.optim.SGD):
    """An optimizer whose state has an object that a checkpoint cannot give back."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.param_groups[0]["history"] = deque([1.0])


def test_an_optimizer_whose_state_cannot_be_read_back_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"optimizer: the state_dict of .*Forgetful may have tensors and plain values"):
        train(tmp_path / "run", optimizer=f"{HERE}:Forgetful", max_steps=1)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
