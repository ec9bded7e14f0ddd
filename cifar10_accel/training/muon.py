"""Muon for convolutions: SGD with momentum whose steps for convolution weights are orthogonalized.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, and https://github.com/KellerJordan/cifar10-airbench.
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

# The polynomial a x + b x^3 + c x^5 maps every singular value to about one in a few iterations. These coefficients
# increase small values as fast as possible; they do not converge to exactly one.
QUINTIC = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 3


class Muon(torch.optim.SGD):
    """SGD, except in groups with `orthogonal=True`, which hold convolution weights (out, in, height, width).

    There the step is the orthogonal matrix nearest to the momentum, seen as a matrix (out, in * height * width), and
    the weights are rescaled to Frobenius norm sqrt(out) before each step. So the LR is the relative size of a step,
    independent of the loss and the layer, and no weight decay is needed.
    """

    grad_scale: Tensor | None
    found_inf: Tensor

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                for filters in group["params"]:
                    self._orthogonal_step(filters, group)
        loss: float | None = super().step(closure)
        return loss

    def _orthogonal_step(self, filters: Tensor, group: dict[str, Any]) -> None:
        if filters.grad is None:
            return
        momentum = self.state[filters].setdefault("momentum_buffer", torch.zeros_like(filters))
        # A loss scaler sets `grad_scale` and `found_inf` while a fused optimizer takes its step.
        update = self._update_unless_overflow if hasattr(self, "found_inf") else self._update
        update(filters, filters.grad, momentum, group)
        filters.grad = None  # so that SGD skips it

    def _update(self, filters: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
        momentum.mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        filters.mul_(len(filters) ** 0.5 / filters.norm())
        filters.sub_(orthogonalized(direction.flatten(1)).view_as(filters), alpha=group["lr"])

    def _update_unless_overflow(
        self, filters: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any]
    ) -> None:
        """Update with the unscaled gradient, and undo it on the device after an overflow, without a synchronisation."""
        before = filters.clone(), momentum.clone()
        self._update(filters, gradient if self.grad_scale is None else gradient / self.grad_scale, momentum, group)
        for now, then in zip((filters, momentum), before, strict=True):
            now.copy_(torch.where(self.found_inf > 0, then, now))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Approximate the nearest matrix with orthonormal rows (or columns, if there are fewer) by Newton-Schulz iteration.

    The singular values of the result are near one, not exactly one. On a GPU it is computed in bfloat16, whose rounding
    errors are small beside that.

    Args:
        matrix: (rows, columns), of any scale.

    Returns:
        A matrix of the same shape and dtype.
    """
    a, b, c = QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    x = x / (x.norm() + 1e-7)  # all singular values are at most one
    for _ in range(NUM_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal.to(matrix.dtype)
