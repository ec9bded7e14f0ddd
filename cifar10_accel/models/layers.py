"""Parts that the models share: stems, global pooling, and the model that puts them around a backbone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]
CONV2X2_STEM_CHANNELS = 24


class Whitening(nn.Conv2d):
    """Fixed convolution to the principal components of image patches, scaled to equal variance.

    Normalised images (N, 3, H, W) to (N, 3 * kernel_size^2, h, w); twice as many channels with `both_signs`, for an
    activation that keeps one sign only. The filters are fitted to the training images before training (`fit`) and are
    not trained. Neither is the bias, which only a layer with both signs has: its gradient would need the gradient of
    the largest activations of the model. The biggest single gain of the CIFAR-10 speed runs (Page 2019, "How to train
    your ResNet" 8; cifar10-airbench).

    Args:
        kernel_size: Side of the patches in pixels.
        padding: Zero padding on each side in pixels.
        both_signs: Append the negative of each filter, and add a bias equal to `gain`.

    Attributes:
        gain: Standard deviation of the output, and the bias: the value that a trained bias converges to.
    """

    def __init__(self, *, kernel_size: int, padding: int, both_signs: bool) -> None:
        num_filters = 3 * kernel_size**2 * (2 if both_signs else 1)
        super().__init__(3, num_filters, kernel_size, padding=padding, bias=both_signs)
        self.both_signs = both_signs
        self.gain = 1.0
        self.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor, *, smallest_variance: float = 5e-4) -> None:
        """Set the filters from normalised images (N, 3, H, W).

        Args:
            images: Training images, or a part of them.
            smallest_variance: Added to the variance of each component, so that noise is not amplified without limit.
        """
        patches = F.unfold(images, self.kernel_size).transpose(1, 2).flatten(0, 1).double()  # (patches, values)
        variances, components = torch.linalg.eigh(patches.T.cov())  # columns, from the least variance
        # The sign of an eigenvector is arbitrary: make its largest value positive.
        signs = components.gather(0, components.abs().argmax(dim=0, keepdim=True)).sign()
        filters = (components * signs / (variances + smallest_variance).sqrt()).T.flip(0)
        filters = torch.cat([filters, -filters]) if self.both_signs else filters
        self.weight.copy_(self.gain * filters.view_as(self.weight))
        if self.bias is not None:
            self.bias.fill_(self.gain)


def conv3x3_stem(width: int, activation: Activation, *, whitening: bool) -> nn.Sequential:
    """Return a 3x3 convolution, norm and activation: (N, 3, H, W) to (N, width, H, W).

    With whitening the 3x3 filters are fixed and only a 1x1 convolution after them is trained.
    """
    if whitening:
        fixed = Whitening(kernel_size=3, padding=1, both_signs=False)
        convolution: nn.Module = nn.Sequential(fixed, nn.Conv2d(fixed.out_channels, width, kernel_size=1, bias=False))
    else:
        convolution = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), activation())


def conv2x2_stem(activation: Activation, *, whitening: bool) -> nn.Sequential:
    """Return a 2x2 convolution and activation, without norm: (N, 3, H, W) to (N, 24, H - 1, W - 1).

    The 24 channels are the twelve principal components of a 2x2 patch and their negatives (cifar10-airbench).
    """
    # Built in either case: it draws random numbers, and the weights after it must not depend on whether it is used.
    convolution = nn.Conv2d(3, CONV2X2_STEM_CHANNELS, kernel_size=2)
    if whitening:
        convolution = Whitening(kernel_size=2, padding=0, both_signs=True)
    return nn.Sequential(convolution, activation())


class Backbone(nn.Sequential):
    """The stages between stem and pooling, run one after another; subclasses set `out_channels`."""

    out_channels: int


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: (N, C, H, W) to (N, C).

    Not nn.AdaptiveMaxPool2d, whose gradient is not deterministic on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maximum over the last two dimensions."""
        return x.amax(dim=(2, 3))


class GlobalAveragePool(nn.Module):
    """The mean of each channel: (N, C, H, W) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the last two dimensions."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class ConvNet(nn.Module):
    """Stem, backbone, global pooling and one linear layer, whose logits are multiplied by `logit_scale`.

    Images (N, 3, H, W), normalised floats, to logits (N, num_classes).
    """

    def __init__(
        self, stem: nn.Module, backbone: nn.Module, pool: nn.Module, head: nn.Linear, *, logit_scale: float
    ) -> None:
        super().__init__()
        self.stem, self.backbone, self.pool, self.head = stem, backbone, pool, head
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, 3, H, W)."""
        features = self.backbone(self.stem(images))  # (N, C, h, w)
        logits: Tensor = self.head(self.pool(features))
        return logits * self.logit_scale
