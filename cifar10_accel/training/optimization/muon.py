"""Muon for convolutions: SGD with momentum whose steps for convolution weights are orthogonalized.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, and https://github.com/KellerJordan/cifar10-airbench.
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from cifar10_accel.training.launch.precision import is_computed_well

# The polynomial a x + b x^3 + c x^5 maps every singular value to about one in a few iterations. These coefficients
# increase small values as fast as possible; they do not converge to exactly one.
QUINTIC = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 3
SMALLEST_NORM = 1e-12  # of weights, which may all be zero at first


class Muon(torch.optim.SGD):
    """SGD, except in groups with `orthogonal=True`, which hold convolution weights (out, in, height, width).

    There the step is the orthogonal matrix nearest to the momentum, seen as a matrix (out, in * height * width), and
    the weights are rescaled to Frobenius norm sqrt(out) before each step. So the LR is the relative size of a step,
    independent of the loss and the layer, and no weight decay is needed.

    On a CPU the convolutions are updated one after another. On a GPU, where launching a kernel takes longer than such
    a small product, all are updated together; the results are equal up to rounding.

    Args:
        params: As for every optimizer.
        iteration_dtype: Precision of the matrix products on a CPU; on a GPU it is bfloat16.
        **options: Of SGD.
    """

    grad_scale: Tensor | None
    found_inf: Tensor

    def __init__(self, params: ParamsT, *, iteration_dtype: torch.dtype = torch.float32, **options: Any) -> None:
        super().__init__(params, **options)
        self.iteration_dtype = iteration_dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                self._orthogonal_step([filters for filters in group["params"] if filters.grad is not None], group)
        loss: float | None = super().step(closure)
        return loss

    def _orthogonal_step(self, convolutions: list[Tensor], group: dict[str, Any]) -> None:
        """Update the weights of these convolutions and drop their gradients, so that SGD skips them."""
        for filters in convolutions:
            if "momentum_buffer" not in self.state[filters]:
                self.state[filters]["momentum_buffer"] = torch.zeros_like(filters)
        is_scaled = hasattr(self, "found_inf")  # a loss scaler sets it while a fused optimizer takes its step
        if convolutions and (is_scaled or convolutions[0].device.type != "cpu"):
            self._update_together(convolutions, group)
        else:
            for filters in convolutions:
                self._update(filters, group)
        for filters in convolutions:
            filters.grad = None

    def _update(self, filters: Tensor, group: dict[str, Any]) -> None:
        gradient, momentum = filters.grad, self.state[filters]["momentum_buffer"]
        assert gradient is not None
        momentum.mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        filters.mul_(len(filters) ** 0.5 / filters.norm().clamp(min=SMALLEST_NORM))
        step = orthogonalized(direction.flatten(1).to(self.iteration_dtype))
        filters.sub_(step.view_as(filters), alpha=group["lr"])

    def _update_together(self, convolutions: list[Tensor], group: dict[str, Any]) -> None:
        """Do what `_update` does for each, in one batch of matrices that are padded with zeros to the largest one.

        Zero rows and columns stay zero in the iteration and change no norm. After an overflow of half precision, which
        only the device knows of, the momentum and the weights keep their values.
        """
        gradients = [_matrix(filters.grad) for filters in convolutions if filters.grad is not None]
        momenta = [_matrix(self.state[filters]["momentum_buffer"]) for filters in convolutions]
        rows, columns = (max(matrix.shape[side] for matrix in gradients) for side in (0, 1))
        batch = gradients[0].new_zeros(len(gradients), rows, columns)
        matrices = [batch[i, : matrix.shape[0], : matrix.shape[1]] for i, matrix in enumerate(gradients)]
        torch._foreach_copy_(matrices, gradients)
        overflow = self.found_inf.reshape(()) > 0 if hasattr(self, "found_inf") else None
        if overflow is not None:
            if self.grad_scale is not None:
                batch.div_(self.grad_scale)
            batch.masked_fill_(overflow, 0.0)

        decay = group["momentum"]
        torch._foreach_mul_(momenta, decay if overflow is None else torch.where(overflow, 1.0, decay))
        torch._foreach_add_(momenta, matrices)
        if group["nesterov"]:
            torch._foreach_add_(matrices, momenta, alpha=decay)
        else:
            torch._foreach_copy_(matrices, momenta)

        steps = _orthogonalized_batch(batch) * group["lr"]  # a number, or a tensor on the device
        sizes = torch._foreach_div(torch._foreach_norm(convolutions), [len(filters) ** 0.5 for filters in convolutions])
        torch._foreach_clamp_min_(sizes, SMALLEST_NORM)
        if overflow is not None:
            steps = steps.masked_fill(overflow, 0.0)
            sizes = torch.stack(sizes).masked_fill(overflow, 1.0).unbind()
        torch._foreach_div_(convolutions, sizes)
        steps_of_each = [steps[i, : matrix.shape[0], : matrix.shape[1]] for i, matrix in enumerate(gradients)]
        torch._foreach_sub_([_matrix(filters) for filters in convolutions], steps_of_each)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Approximate the nearest matrix with orthonormal rows (or columns, if there are fewer) by Newton-Schulz iteration.

    The singular values of the result are near one, not exactly one.

    Args:
        matrix: (rows, columns), of any scale.

    Returns:
        A matrix of the same shape and dtype.
    """
    a, b, c = QUINTIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / (x.norm() + 1e-7)  # all singular values are at most one
    for _ in range(NUM_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal


def _orthogonalized_batch(matrices: Tensor) -> Tensor:
    """Do what `orthogonalized` does for each of (batch, rows, columns), in as few kernels as possible.

    On GPUs with bfloat16 it is computed in that: the rounding errors are small beside those of the approximation.
    """
    a, b, c = QUINTIC
    x = matrices.bfloat16() if matrices.is_cuda and is_computed_well("bf16", matrices.device) else matrices
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(NUM_ITERATIONS):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal.to(matrices.dtype)


def _matrix(filters: Tensor) -> Tensor:
    """Return a view (out, in * height * width) with the columns in the order of memory.

    The order is of no importance to the iteration, if it is that of the weights, their gradient and their momentum.
    """
    in_memory_order = filters if filters.is_contiguous() else filters.permute(0, 2, 3, 1)
    return in_memory_order.view(len(filters), -1)
