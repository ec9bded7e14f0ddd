"""Who sees which image when: the same for any number of ranks, workers and accumulation steps."""

import numpy as np
import pytest
import torch

from cifar10_accel.data.batches import BatchPlan, epoch_order, training_batches
from cifar10_accel.data.cifar10 import Split
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings


def plan(**changes: int) -> BatchPlan:
    """A plan of 100 images in batches of 24."""
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


def pixels(split: Split, start_step: int, a_plan: BatchPlan, **settings: object) -> list[torch.Tensor]:
    """The images of updates `start_step`..8, each update's accumulation steps joined."""
    batches = training_batches(
        split, a_plan, Settings(**settings), start_step=start_step, stop_step=9, device=torch.device("cpu")
    )
    return [torch.cat([batch.images for batch in update]) for update in batches]


def test_workers_backends_accumulation_and_start_do_not_change_a_pixel(split: Split) -> None:
    expected = pixels(split, 0, plan(), augment_backend="batched")
    assert len(expected) == 9
    others = {
        "started at update 5": [*expected[:5], *pixels(split, 5, plan(), augment_backend="batched")],
        "accumulation": pixels(split, 0, plan(grad_accum_steps=3), augment_backend="batched"),
        "albumentations": pixels(split, 0, plan(), augment_backend="albumentations"),
        "2 workers": pixels(split, 0, plan(), augment_backend="albumentations", num_workers=2),
    }
    for name, found in others.items():
        for step, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            assert torch.equal(ours, theirs), f"{name}: first difference at update {step}"


def test_each_epoch_augments_anew(split: Split) -> None:
    everything = plan(batch_size=100)
    first, second = pixels(split, 0, everything)[:2]
    order = [epoch_order(0, epoch, 100).argsort() for epoch in (0, 1)]
    same = (first[order[0].copy()] == second[order[1].copy()]).flatten(1).all(dim=1)
    assert same.sum() < 5
