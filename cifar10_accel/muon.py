"""Muon for convolutions: SGD whose step for a filter bank is an orthogonal matrix.

(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, and its use in the cifar10-airbench speed runs.)
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

# The polynomial a x + b x^3 + c x^5 takes every singular value to about one in a few rounds; these
# coefficients grow small values as fast as possible and do not care to end at exactly one.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


class Muon(torch.optim.SGD):
    """SGD, except in groups with `orthogonal=True`, whose parameters are filter banks (out, in, height, width).

    There the momentum, seen as a matrix (out, in * height * width), is replaced by the orthogonal matrix
    nearest to it, and the filters are kept at Frobenius norm sqrt(out): the LR is then the share of its
    own size by which a bank turns in one update, whatever the loss and the layer, and needs no decay.
    """

    grad_scale: Tensor | None
    found_inf: Tensor

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one update."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                for filters in group["params"]:
                    self._step_of(filters, group)
        loss: float | None = super().step(closure)
        return loss

    def _step_of(self, filters: Tensor, group: dict[str, Any]) -> None:
        if filters.grad is None:
            return
        momentum = self.state[filters].setdefault("momentum_buffer", torch.zeros_like(filters))
        turn = self._turn_unless_overflown if hasattr(self, "found_inf") else self._turn
        turn(filters, filters.grad, momentum, group)
        filters.grad = None  # done: SGD passes over it

    def _turn(self, filters: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
        momentum.mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        filters.mul_(len(filters) ** 0.5 / filters.norm())
        filters.sub_(orthogonalized(direction.flatten(1)).view_as(filters), alpha=group["lr"])

    def _turn_unless_overflown(
        self, filters: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any]
    ) -> None:
        """After a loss scaler, which sets `grad_scale` and `found_inf` while a fused optimizer makes its step."""
        before = filters.clone(), momentum.clone()
        self._turn(filters, gradient if self.grad_scale is None else gradient / self.grad_scale, momentum, group)
        for now, then in zip((filters, momentum), before, strict=True):
            now.copy_(torch.where(self.found_inf > 0, then, now))  # the host need not know


def orthogonalized(matrix: Tensor) -> Tensor:
    """About the nearest matrix with orthonormal rows (or columns, if there are fewer), by Newton-Schulz iteration.

    Its singular values are near one, not one. On a GPU it computes in bfloat16, whose errors do not matter here.
    """
    a, b, c = QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    x = x / (x.norm() + 1e-7)  # no singular value above one
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal.to(matrix.dtype)
