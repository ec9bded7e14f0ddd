"""One optimizer step: the loss of mixed images, clipped gradients, and the random numbers of layers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_commands import TINY

from cifar10_accel.data.loader import Batch
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training.step import forward, seed_layers


def test_the_loss_of_mixed_images_is_the_weighted_mean_of_those_of_both_labels() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels, partner_labels = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    batch = Batch(logits, labels, torch.arange(3), partner_labels, weight=0.7)
    state: Any = SimpleNamespace(loss=F.cross_entropy, recorder=None)
    loss, totals = forward(state, nn.Identity(), batch)
    expected = 0.7 * F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(logits, partner_labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(totals[0], 3 * expected)


class NormsOfGradients(torch.optim.SGD):
    """SGD that records the norm of the whole gradient in each step."""

    norms: list[float]

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        NormsOfGradients.norms = []

    def step(self, closure: Any = None) -> Any:
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        self.norms.append(nn.utils.get_total_norm(gradients).item())
        return super().step(closure)


def norms_of_gradients(folder: Path, **changes: Any) -> list[float]:
    """Return the norms that reach the optimizer in the first three steps."""
    fit(Settings(**TINY | {"run_dir": folder, "max_steps": 3} | changes), optimizer=NormsOfGradients)
    return NormsOfGradients.norms


def test_gradients_are_clipped_to_the_largest_allowed_norm(tmp_path: Path) -> None:
    unclipped = norms_of_gradients(tmp_path / "unclipped")
    limit = min(unclipped) / 4
    clipped = norms_of_gradients(tmp_path / "clipped", grad_clip=limit)
    assert clipped == pytest.approx([limit] * 3, rel=1e-4)
    assert norms_of_gradients(tmp_path / "loose", grad_clip=2 * max(unclipped)) == pytest.approx(unclipped, rel=1e-3)


def drawn_after_seeding(*, seed: int = 0, step: int = 5, rank: int = 0) -> Tensor:
    """Return random numbers that a layer draws in a step."""
    accelerator = SimpleNamespace(process_index=rank, device=torch.device("cpu"))
    state: Any = SimpleNamespace(settings=SimpleNamespace(seed=seed), step=step, accelerator=accelerator)
    seed_layers(state)
    return torch.rand(4)


def test_layers_draw_numbers_of_seed_step_and_rank() -> None:
    expected = drawn_after_seeding()
    assert torch.equal(drawn_after_seeding(), expected)
    for other in ({"seed": 1}, {"step": 6}, {"rank": 1}):
        assert not torch.equal(drawn_after_seeding(**other), expected), other
