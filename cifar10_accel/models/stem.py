"""The first layer of a net: a convolution that is trained, or one that whitens and is not."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Whitening(nn.Conv2d):
    """Normalised images to the principal components of their patches, scaled to equal variance: (N, 3 * kernel_size^2,
    height, width), twice as many channels with `both_signs`, for an activation that keeps one sign only.

    The filters are `fit` to the training images before training and stay. So does the bias, which only a layer with
    both signs has: training it would cost the gradient of the largest activations of the net. The biggest single
    gain of the CIFAR-10 speed runs (Page 2019, "How to train your ResNet" 8; cifar10-airbench).

    gain: the standard deviation of the output, and the bias. Training takes a bias there that starts elsewhere.
    """

    def __init__(self, *, kernel_size: int, padding: int, both_signs: bool) -> None:
        num_filters = 3 * kernel_size**2 * (2 if both_signs else 1)
        super().__init__(3, num_filters, kernel_size, padding=padding, bias=both_signs)
        self.both_signs = both_signs
        self.gain = 1.0
        self.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor, *, smallest_variance: float = 5e-4) -> None:
        """Sets the filters from normalised images (N, 3, 32, 32); components of less variance are amplified less."""
        patches = F.unfold(images, self.kernel_size).transpose(1, 2).flatten(0, 1).double()  # (patches, values)
        variances, components = torch.linalg.eigh(patches.T.cov())  # columns, from the least variance
        signs = components.gather(0, components.abs().argmax(dim=0, keepdim=True)).sign()  # else up to the library
        filters = (components * signs / (variances + smallest_variance).sqrt()).T.flip(0)
        filters = torch.cat([filters, -filters]) if self.both_signs else filters
        self.weight.copy_(self.gain * filters.view_as(self.weight))
        if self.bias is not None:
            self.bias.fill_(self.gain)


def stem(channels: int, *, whitening: bool) -> nn.Module:
    """The first 3x3 convolution, (N, 3, 32, 32) to (N, channels, 32, 32); only its 1x1 half is trained if whitening."""
    if not whitening:
        return nn.Conv2d(3, channels, kernel_size=3, padding=1, bias=False)
    fixed = Whitening(kernel_size=3, padding=1, both_signs=False)
    return nn.Sequential(fixed, nn.Conv2d(fixed.out_channels, channels, kernel_size=1, bias=False))
