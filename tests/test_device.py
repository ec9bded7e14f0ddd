"""Training on a device that nobody can look into: what a GPU makes slow (waiting for it) is an error there.

torch's meta device has shapes and no values. So an update that asks it for a value fails, as does one that leaves
something on the host and mixes it with what is on the device, which on a CPU would go unnoticed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from conftest import TINY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar10_accel import training_state
from cifar10_accel.data import resident
from cifar10_accel.data.batches import Batch, BatchPlan, training_batches
from cifar10_accel.data.cifar10 import Dataset, Split
from cifar10_accel.engine import _view_logits, train_step
from cifar10_accel.recipes import recipe_names
from cifar10_accel.recorder import Recorder
from cifar10_accel.settings import Settings
from cifar10_accel.train import train

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


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    accelerator = Accelerator()
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "device", DEVICE)
    monkeypatch.setattr(training_state, "fit_whitening", lambda net, images: None)  # before training, and may wait
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
def test_no_update_and_no_evaluation_asks_the_device(changes: dict[str, Any], accelerator: Accelerator) -> None:
    settings = Settings(**(changes | SMALL), compile=False)
    dataset = _dataset()
    split = dataset.train
    with _OneDevice():
        state = training_state.build_state(settings, accelerator, dataset)
        recorder = Recorder(accelerator, split.labels, num_classes=10)
        for batches in _batches(split, settings, accelerator):
            state.since_line += train_step(
                accelerator, state.model, state.optimizer, batches, lr=0.1, settings=settings, average=state.average,
                recorder=recorder,
            )  # fmt: skip
        images = resident.resident_images(split, DEVICE).take(torch.arange(100))
        plain, averaged = _view_logits(state.evaluated.eval(), images, settings.tta)
    assert state.since_line.device == plain.device == averaged.device == DEVICE
    assert all(parameter.device == DEVICE for parameter in state.net.parameters())


def test_a_checkpoint_of_a_cpu_goes_on_on_a_gpu() -> None:
    """Where the optimizer's kernels are fused and do the work of the loss scaler: it must not be told otherwise."""
    cpu, gpu = (training_state.build_state(Settings(recipe="smoke"), Accelerator(), _dataset()) for _ in range(2))
    gpu.optimizer.param_groups[0]["fused"] = True
    cpu.step = 7
    gpu.restore(cpu.capture(), source=Path("step-7"))
    assert gpu.step == 7
    assert gpu.optimizer.param_groups[0]["fused"]
    assert not cpu.optimizer.param_groups[0]["fused"]


def test_images_are_copied_to_the_device_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often they are evaluated: training set, hold-out, test set."""
    copied: list[int] = []
    monkeypatch.setattr(resident, "_has_room", lambda device, num_bytes: copied.append(num_bytes) is None)
    train(Settings(**TINY | {"epochs": 3, "eval_every": 1}, run_dir=tmp_path / "run"))
    assert len(copied) == 3


def test_what_would_be_found() -> None:
    on_device, on_host = torch.zeros(3, device=DEVICE), torch.zeros(3, dtype=torch.int64)
    with _OneDevice():
        with pytest.raises(AssertionError, match="index_select of tensors on"):
            on_device.index_select(0, on_host)
        with pytest.raises(RuntimeError, match="item"):
            bool(on_device.sum() > 0)
        with pytest.raises(NotImplementedError):
            on_device[on_device > 0]


def _dataset() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(200) % 10)
    return Dataset("synthetic", tuple("abcdefghij"), split, None, split)


def _batches(split: Split, settings: Settings, accelerator: Accelerator) -> Iterator[list[Batch]]:
    plan = BatchPlan.of(settings, accelerator, num_images=len(split))
    return training_batches(
        split, plan, settings, start_step=0, stop_step=2 * plan.steps_per_epoch, device=DEVICE, dtype=torch.float32
    )
