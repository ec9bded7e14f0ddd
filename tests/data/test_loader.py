"""Training batches: equal for any number of ranks, workers and accumulation steps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from waiting import Watch

from cifar10_accel.data.batch_plan import BatchPlan, epoch_order
from cifar10_accel.data.dataset import Dataset, Split
from cifar10_accel.data.image_format import CIFAR10_IMAGES
from cifar10_accel.data.loader import Batch, TrainingLoader
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings


def plan(**changes: int) -> BatchPlan:
    """Return a plan of 100 images in batches of 24."""
    values = {"num_images": 100, "batch_size": 24, "grad_accum_steps": 1, "num_processes": 1, "rank": 0, "seed": 0}
    return BatchPlan(**(values | changes))


@pytest.fixture(scope="module")
def split() -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    return Split(pixels, np.arange(100) % 10)


def test_an_epoch_is_a_permutation_and_each_is_another() -> None:
    orders = [epoch_order(0, epoch, 1000) for epoch in range(3)] + [epoch_order(1, 0, 1000)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(("num_processes", "grad_accum_steps"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 3)])
def test_all_ranks_together_see_the_global_batch(num_processes: int, grad_accum_steps: int) -> None:
    for step in range(9):
        ranks = [
            plan(num_processes=num_processes, grad_accum_steps=grad_accum_steps, rank=rank).indices(step)
            for rank in range(num_processes)
        ]
        together = np.concatenate([part for parts in zip(*ranks, strict=True) for part in parts])
        assert np.array_equal(together, plan().indices(step)[0])


def test_an_epoch_has_only_full_batches() -> None:
    assert plan().steps_per_epoch == 4
    assert [plan().epoch_of(step) for step in (0, 3, 4)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 101}, "batch_size: 101 is more than the 100"),
        ({"batch_size": 25, "num_processes": 2}, "give 24 or 26"),
        ({"batch_size": 2, "num_processes": 4}, "give 4"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(**changes)


def dataset_of(split: Split) -> Dataset:
    names = [f"class {number}" for number in range(10)]
    return Dataset(name="synthetic", train=split, test=split, class_names=names, image_format=CIFAR10_IMAGES)


def batches(
    split: Split, start_step: int, stop_step: int, a_plan: BatchPlan, *, device: str = "cpu", **settings: object
) -> Iterator[list[Batch]]:
    """Return the micro-batches of each step, in float32."""
    dataset = dataset_of(split)
    loader = TrainingLoader(dataset, a_plan, Settings(**settings), device=torch.device(device), dtype=torch.float32)
    return loader.batches(start_step, stop_step)


def pixels(split: Split, start_step: int, a_plan: BatchPlan, **settings: object) -> list[torch.Tensor]:
    """Return the images of steps `start_step`..8, with the micro-batches of each step concatenated."""
    steps = batches(split, start_step, 9, a_plan, **settings)
    return [torch.cat([batch.images for batch in step]) for step in steps]


def test_workers_backends_accumulation_and_start_do_not_change_a_pixel(split: Split) -> None:
    small = {"low_res_epochs": 2, "low_res_size": 20}  # the last step has the full size
    expected = pixels(split, 0, plan(**small), augment_backend="batched")
    assert len(expected) == 9
    others = {
        "started at step 5": [*expected[:5], *pixels(split, 5, plan(**small), augment_backend="batched")],
        "accumulation": pixels(split, 0, plan(**small, grad_accum_steps=3), augment_backend="batched"),
        "albumentations": pixels(split, 0, plan(**small), augment_backend="albumentations"),
        "2 workers": pixels(split, 0, plan(**small), augment_backend="albumentations", num_workers=2),
    }
    for name, found in others.items():
        for step, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            assert torch.equal(ours, theirs), f"{name}: first difference at step {step}"


def test_the_first_epochs_are_scaled_down_and_nothing_else_changes(split: Split) -> None:
    full = pixels(split, 0, plan())
    found = pixels(split, 0, plan(low_res_epochs=1, low_res_size=20))
    assert [step.shape[2:] for step in found] == [(20, 20)] * 4 + [(32, 32)] * 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[4:], full[4:], strict=True))
    expected = F.adaptive_avg_pool2d(full[0], 4)  # nearly independent of the resolution
    assert (F.adaptive_avg_pool2d(found[0], 4) - expected).abs().mean() < 0.25 * expected.abs().mean()


def test_the_share_of_small_images_is_one_of_whole_epochs() -> None:
    settings = Settings(low_res_fraction=0.5, low_res_size=20, epochs=5, peak_epoch=0)
    a_plan = BatchPlan.of(settings, Accelerator(cpu=True), num_images=5000)
    assert (a_plan.low_res_epochs, a_plan.low_res_size) == (2, 20)
    assert BatchPlan.of(Settings(), Accelerator(cpu=True), num_images=5000).low_res_epochs == 0


def test_each_epoch_augments_anew(split: Split) -> None:
    everything = plan(batch_size=100)
    first, second = pixels(split, 0, everything)[:2]
    order = [epoch_order(0, epoch, 100).argsort() for epoch in (0, 1)]
    same = (first[order[0].copy()] == second[order[1].copy()]).flatten(1).all(dim=1)
    assert same.sum() < 5


@pytest.mark.parametrize("ahead", [2, 3, 100])
def test_augmenting_several_steps_at_once_changes_nothing(
    ahead: int, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; an epoch has four steps, and a group of steps ends with its epoch."""
    a_plan = plan(num_processes=2, rank=1, grad_accum_steps=2)
    expected = pixels(split, 1, a_plan)
    monkeypatch.setattr(TrainingLoader, "steps_per_group", ahead)
    found = pixels(split, 1, a_plan)
    assert len(found) == len(expected) == 8
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("device", "processes", "size", "steps"),
    [
        ("cpu", 1, 32, 1),
        ("cpu", 2, 64, 1),
        ("cuda", 1, 8, 32),
        ("cuda", 2, 32, 64),
        ("cuda", 1, 64, 8),
        ("cuda", 1, 256, 1),
    ],
)
def test_large_images_are_augmented_fewer_at_once(device: str, processes: int, size: int, steps: int) -> None:
    images = np.zeros((600, size, size, 1), np.uint8)
    dataset = Dataset(name="own", train=(images, np.arange(600) % 2), test=(images[:2], np.arange(2)))
    a_plan = BatchPlan(num_images=600, batch_size=512, grad_accum_steps=1, num_processes=processes, rank=0, seed=0)
    made = TrainingLoader(dataset, a_plan, Settings(augment="flip"), device=torch.device(device), dtype=torch.float32)
    assert made.steps_per_group == steps


def test_the_training_dtype_is_that_of_the_batches(split: Split) -> None:
    loader = TrainingLoader(dataset_of(split), plan(), Settings(), device=torch.device("cpu"), dtype=torch.bfloat16)
    ((batch,),) = loader.batches(0, 1)
    assert batch.images.dtype == torch.bfloat16
    assert torch.equal(batch.images, pixels(split, 0, plan())[0].to(torch.bfloat16))


@pytest.mark.parametrize("changes", [{}, {"flip_mode": "alternating", "mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_no_batch_waits_for_the_device(changes: dict[str, Any], split: Split) -> None:
    with Watch() as watch:
        pixels(split, 0, plan(), **changes)
        assert watch.waited_for == []
        assert watch.num_operations > 100
        torch.ones(1).item()
    assert watch.waited_for == ["_local_scalar_dense"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_pixels_of_a_cpu_without_a_wait(split: Split) -> None:
    expected, steps = pixels(split, 0, plan()), batches(split, 0, 9, plan(), device="cuda")
    found = [next(steps)[0].images]  # the first batch copies the images to the GPU
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += [micro_batches[0].images for micro_batches in steps]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(ours, theirs.cpu()) for ours, theirs in zip(expected, found, strict=True))
