"""Training on torch's meta device, where a synchronisation (slow on a GPU) is an error.

The meta device has shapes but no values. A step that reads a value fails there, and so does one that mixes tensors of
the host with those of the device, which would go unnoticed on a CPU.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_commands import TINY

from cifar10_accel.data import device_cache
from cifar10_accel.data.augment.batched import normalize
from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training import state as training_state
from cifar10_accel.training.dynamics_recorder import DynamicsRecorder
from cifar10_accel.training.evaluation import _view_logits
from cifar10_accel.training.optimization.optimizer import make_average
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.step import train_step

DEVICE = torch.device("meta")
COPIES = ("_to_copy", "copy_")
SMALL = {"width": 8, "batch_size": 64}


class _OneDevice(TorchDispatchMode):
    """Context in which an operation on tensors of several devices fails; single numbers of the host may take part."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in given if tensor.ndim or tensor.device == DEVICE}
        assert len(devices) < 2 or name in COPIES, f"{name} of tensors on {sorted(devices)}"
        return function(*args, **(kwargs or {}))


class _NoCopies(TorchDispatchMode):
    """Context in which a copy between host and device fails, at which the host of a GPU would wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in COPIES:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            devices = {tensor.device.type for tensor in tensors}
            assert len(devices) == 1, f"copy between {sorted(devices)}"
        return result


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    accelerator = Accelerator()
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "device", DEVICE)
    monkeypatch.setattr(
        training_state, "fit_whitening", lambda model, images: None
    )  # may synchronise: it runs before training
    monkeypatch.setattr("cifar10_accel.training.step.seed_layers", lambda state: None)  # meta has no random numbers
    assert accelerator.device == DEVICE
    return accelerator


@pytest.mark.parametrize(
    "changes",
    [{"recipe": name} for name in recipe_names()]
    + [
        {"augment_backend": "albumentations", "num_workers": 0},
        {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "grad_accum_steps": 2},
        {"low_res_fraction": 0.5, "grad_clip": 1.0, "optimizer": "adamw"},
    ],
    ids=str,
)
def test_no_step_and_no_evaluation_waits_for_the_device(changes: dict[str, Any], accelerator: Accelerator) -> None:
    settings = Settings(**(changes | SMALL), compile=False)
    dataset = _dataset()
    split = dataset.train
    with _OneDevice():
        setup = RunSetup(accelerator, settings, dataset)
        state = training_state.build_state(setup)
        state.recorder = DynamicsRecorder(accelerator, split.labels, num_classes=10)
        for batches in setup.loader.batches(0, 2 * setup.plan.steps_per_epoch):
            with _NoCopies() if state.step else nullcontext():
                train_step(state, batches, lr=0.1)
        images = device_cache.cached_images(split, DEVICE).take(torch.arange(100))
        inputs = normalize(images, torch.float32)
        tta = settings.tta.removesuffix("_uncertain")
        plain, averaged = _view_logits(state.evaluated_model.eval(), inputs, tta)
    assert state.metrics_since_log.device == plain.device == averaged.device == DEVICE
    assert all(parameter.device == DEVICE for parameter in state.model.parameters())


def test_a_checkpoint_of_a_cpu_goes_on_on_a_gpu() -> None:
    """The optimizer's fused kernels apply the loss scale there, so the checkpoint must not change that option."""
    setup = RunSetup(Accelerator(), Settings(recipe="smoke"), _dataset())
    cpu, gpu = (training_state.build_state(setup) for _ in range(2))
    gpu.optimizer.param_groups[0]["fused"] = True
    cpu.step = 7
    gpu.restore(cpu.capture(), source=Path("step-7"))
    assert gpu.step == 7
    assert gpu.optimizer.param_groups[0]["fused"]
    assert not cpu.optimizer.param_groups[0]["fused"]


def test_images_are_copied_to_the_device_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each for training set, hold-out and test set, for any number of evaluations."""
    copied: list[int] = []
    monkeypatch.setattr(device_cache, "_fits", lambda num_bytes, device: copied.append(num_bytes) is None)
    fit(Settings(**TINY | {"epochs": 3, "eval_every": 1}, run_dir=tmp_path / "run"))
    assert len(copied) == 3


def test_the_device_finds_synchronisations_and_mixed_devices() -> None:
    on_device, on_host = torch.zeros(3, device=DEVICE), torch.zeros(3, dtype=torch.int64)
    with _OneDevice():
        with pytest.raises(AssertionError, match="index_select of tensors on"):
            on_device.index_select(0, on_host)
        with pytest.raises(RuntimeError, match="item"):
            bool(on_device.sum() > 0)
        with pytest.raises(NotImplementedError):
            on_device[on_device > 0]
    with _NoCopies():
        on_device + 1
        with pytest.raises(AssertionError, match="copy between"):
            on_host.to(DEVICE)
        with pytest.raises(AssertionError, match="copy between"):
            on_device.copy_(on_host)


def test_the_average_of_weights_is_that_of_pytorch() -> None:
    """The same bits for weights and running statistics; torch's own copies a number to the device in every step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    ours = make_average(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    assert ours is not None
    for _ in range(4):
        model(torch.randn(5, 3, 8, 8))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update_parameters(model)
        ours.n_averaged += 1
        theirs.update_parameters(model)
    floats = {name: value for name, value in theirs.state_dict().items() if value.is_floating_point()}
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in floats.items())
    assert ours.n_averaged == theirs.n_averaged == ours.module[1].num_batches_tracked == 4


def test_complex_weights_are_averaged_too() -> None:
    model = torch.nn.Linear(1, 1, dtype=torch.complex64)
    average = make_average(model, 0.9)
    assert average is not None
    for value in (1 + 1j, 2 + 1j):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update_parameters(model)
        average.n_averaged += 1
    torch.testing.assert_close(average.module.weight, torch.full_like(model.weight, 1.1 + 1j))


def _dataset() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(200) % 10)
    return Dataset(name="synthetic", train=split, test=split, class_names=tuple("abcdefghij"))
