"""Nearest training images by cosine similarity of penultimate-layer features."""

from collections import deque

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from cifar10_accel.data.dataset import Split
from cifar10_accel.errors import InputError

BATCH_SIZE = 500


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the input of the last linear layer that a model uses, scaled to length 1 for each image: (N, channels).

    Distances in these features follow the classes better than distances of pixels.

    Args:
        model: Any model that uses a linear layer.
        images: (N, C, H, W), as the model takes them.

    Raises:
        InputError: The model uses none.
    """
    newest_input = deque[Tensor](maxlen=1)
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: newest_input.append(inputs[0]))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not newest_input:
        raise InputError(f"model: a {type(model).__name__} uses no linear layer, whose input would be the features")
    return F.normalize(newest_input[0].float().flatten(1), dim=1)


class NearestNeighbours:
    """Index of a split's images by their features.

    Args:
        model: A model of images (N, 3, H, W), floats in 0..1. Every indexed image is passed through it once.
        split: The images to index.
        num_images: Largest number of images to index; if the split has more, they are evenly spaced.
    """

    def __init__(self, model: nn.Module, split: Split, *, num_images: int) -> None:
        self.index = np.unique(np.linspace(0, len(split) - 1, min(num_images, len(split))).round().astype(np.int64))
        batches = np.array_split(self.index, -(-len(self.index) // BATCH_SIZE))
        self._features = torch.cat(
            [
                features(model, torch.from_numpy(split.images[batch]).permute(0, 3, 1, 2) / 255)
                for batch in track(batches, "features of training images", transient=True)
            ]
        )

    def query(self, query: Tensor, *, count: int) -> tuple[npt.NDArray[np.int64], list[float]]:
        """Return the positions in the split of the images nearest to features (channels,), and their cosines.

        Args:
            query: One row of `features`.
            count: Largest number of images to return; the nearest is the first.
        """
        cosines, rows = (self._features @ query).topk(min(count, len(self.index)))
        return self.index[rows.numpy()], cosines.tolist()
