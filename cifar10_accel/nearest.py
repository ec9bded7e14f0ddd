"""The training images that a net finds most like an image: nearest in what its last layer is given."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from cifar10_accel.data.cifar10 import Split

BATCH = 500


def features(net: nn.Module, images: Tensor) -> Tensor:
    """What the net's last linear layer is given for each image, scaled to length 1: (N, channels).

    images: as the net takes them. Distances in these features follow the classes better than those of pixels.
    """
    *_, head = (layer for layer in net.modules() if isinstance(layer, nn.Linear))
    given: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        with torch.inference_mode():
            net(images)
    finally:
        hook.remove()
    return F.normalize(given[-1].float().flatten(1), dim=1)


class Nearest:
    """The images of a split, or so many of them, spread evenly, by their features."""

    def __init__(self, net: nn.Module, split: Split, *, num_images: int) -> None:
        """Passes the images, at most `num_images`, through the net once: it takes floats in 0..1."""
        self.index = np.unique(np.linspace(0, len(split) - 1, min(num_images, len(split))).round().astype(np.int64))
        parts = np.array_split(self.index, -(-len(self.index) // BATCH))
        self._features = torch.cat([
            features(net, torch.from_numpy(split.images[part]).permute(0, 3, 1, 2) / 255)
            for part in track(parts, "looking at training images", transient=True)
        ])  # fmt: skip

    def to(self, query: Tensor, *, count: int) -> tuple[npt.NDArray[np.int64], list[float]]:
        """Positions in the split of the nearest images to features (channels,), nearest first, and their cosines."""
        cosines, rows = (self._features @ query).topk(min(count, len(self.index)))
        return self.index[rows.numpy()], cosines.tolist()
