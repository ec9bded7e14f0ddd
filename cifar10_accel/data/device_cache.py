"""Cache of a split's images on the device, so that batches need no transfer; in host memory if they do not fit."""

from functools import lru_cache

import torch
from torch import Tensor

from cifar10_accel.data.dataset import Split


class CachedImages:
    """The uint8 images of a split on the device (CIFAR-10: 154 MB), or in host memory if they do not fit."""

    def __init__(self, split: Split, device: torch.device) -> None:
        pixels = torch.from_numpy(split.images)  # (N, H, W, C)
        self._device = device
        self._pixels = pixels.to(device) if _fits(pixels.nbytes, device) else pixels

    def take(self, indices: Tensor) -> Tensor:
        """Return the images with these indices on the device.

        Args:
            indices: (B,) int64 on the host.

        Returns:
            (B, C, H, W) uint8 in channels_last memory format.
        """
        indices = to_device(indices, self._pixels.device)
        return to_device(self._pixels.index_select(0, indices), self._device).permute(0, 3, 1, 2)


@lru_cache(maxsize=2)  # training and test set
def cached_images(split: Split, device: torch.device) -> CachedImages:
    """Return the cached images of the split, which are copied to the device at the first call."""
    return CachedImages(split, device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; copies to a GPU are asynchronous, from pinned memory."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # torch frees the pinned memory after the copy
    return tensor.to(device)


def _fits(num_bytes: int, device: torch.device) -> bool:
    """Return True if this leaves half of a GPU's free memory to the model."""
    return device.type != "cuda" or num_bytes < torch.cuda.mem_get_info(device)[0] // 2
