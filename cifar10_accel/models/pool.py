"""The last pooling of a net."""

from torch import Tensor, nn


class GlobalMaxPool(nn.Module):
    """Features (N, channels, height, width) of any size to the largest value of each channel, (N, channels).

    Not nn.AdaptiveMaxPool2d, whose gradient is not deterministic on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3))
