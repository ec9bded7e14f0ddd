"""The images of a split where batches are cut out of them: on the device if they fit, else in host memory."""

from functools import lru_cache

import torch
from torch import Tensor

from cifar10_accel.data.cifar10 import Split


class ResidentImages:
    """A split's uint8 images; CIFAR-10's 154 MB fit on any accelerator, so batches cost no transfer."""

    def __init__(self, split: Split, device: torch.device) -> None:
        pixels = torch.from_numpy(split.images)  # (N, 32, 32, 3), as they lie in memory
        self._device = device
        self._pixels = pixels.to(device) if _has_room(device, pixels.nbytes) else pixels

    def take(self, indices: Tensor) -> Tensor:
        """Images on the device, (B, 3, 32, 32) uint8 in channels_last memory, for (B,) int64 indices on the host."""
        indices = to_device(indices, self._pixels.device)
        return to_device(self._pixels.index_select(0, indices), self._device).permute(0, 3, 1, 2)


@lru_cache(maxsize=2)  # training and test set
def resident_images(split: Split, device: torch.device) -> ResidentImages:
    """The split's images, copied to the device when they are first asked for and kept."""
    return ResidentImages(split, device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; a GPU copies it while the host goes on, from pinned memory that torch frees after that."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _has_room(device: torch.device, num_bytes: int) -> bool:
    """Whether so much would leave half of a GPU's free memory to the net."""
    return device.type != "cuda" or num_bytes < torch.cuda.mem_get_info(device)[0] // 2
