"""A model: any callable that returns an nn.Module from images (N, C, H, W) to logits (N, num_classes)."""

from itertools import pairwise

from torch import Tensor, nn


class Tiny(nn.Module):
    """Strided convolutions and global pooling; images of any size and number of channels."""

    def __init__(self, num_classes: int, in_channels: int, depth: int = 2, channels: int = 16) -> None:
        super().__init__()
        widths = [in_channels, *(channels * 2**stage for stage in range(depth))]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())
                for before, after in pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        features: Tensor = self.stages(images)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
