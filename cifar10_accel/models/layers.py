"""Parts that the models share: stems, global pooling, and the model that puts them around a backbone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_VARIANCE = 5e-4  # added to that of each component, so that noise is not amplified without limit

Activation = Callable[[], nn.Module]


class Whitening(nn.Conv2d):
    """Fixed convolution to the principal components of image patches, scaled to equal variance.

    Normalised images (N, C, H, W) to (N, C * kernel_size^2, h, w); twice as many channels with `both_signs`, for an
    activation that keeps one sign only. The filters are fitted to the training images before training (`fit`) and are
    not trained. Neither is the bias, which only a layer with both signs has: its gradient would need the gradient of
    the largest activations of the model. The biggest single gain of the CIFAR-10 speed runs (Page 2019, "How to train
    your ResNet" 8; cifar10-airbench).

    Args:
        in_channels: Channels of the images.
        kernel_size: Side of the patches in pixels.
        padding: Zero padding on each side in pixels.
        both_signs: Append the negative of each filter, and add a bias equal to `gain`.

    Attributes:
        gain: Standard deviation of the output, and the bias: the value that a trained bias converges to.
    """

    def __init__(self, in_channels: int, *, kernel_size: int, padding: int, both_signs: bool) -> None:
        num_filters = in_channels * kernel_size**2 * (2 if both_signs else 1)
        super().__init__(in_channels, num_filters, kernel_size, padding=padding, bias=both_signs)
        self.both_signs = both_signs
        self.gain = 1.0
        self.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the filters from normalised images (N, C, H, W).

        Args:
            images: Training images, or a part of them.
        """
        height, width = self.kernel_size
        views = images.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, h, w, height, width)
        # Not F.unfold, which launches a kernel for each image on a GPU.
        patches = views.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)  # (patches, values)
        patches = (patches.cpu() if patches.device.type == "mps" else patches).double()  # which MPS does not have
        variances, components = torch.linalg.eigh(patches.T.cov())  # columns, from the least variance
        # The sign of an eigenvector is arbitrary: make its largest value positive.
        signs = components.gather(0, components.abs().argmax(dim=0, keepdim=True)).sign()
        filters = (components * signs / (variances + SMALLEST_VARIANCE).sqrt()).T.flip(0)
        filters = torch.cat([filters, -filters]) if self.both_signs else filters
        self.weight.copy_(self.gain * filters.view_as(self.weight))
        if self.bias is not None:
            self.bias.fill_(self.gain)


def conv3x3_stem(in_channels: int, width: int, activation: Activation, *, whitening: bool) -> nn.Sequential:
    """Return a 3x3 convolution, norm and activation: (N, in_channels, H, W) to (N, width, H, W).

    With whitening the 3x3 filters are fixed and only a 1x1 convolution after them is trained.
    """
    if whitening:
        fixed = Whitening(in_channels, kernel_size=3, padding=1, both_signs=False)
        convolution: nn.Module = nn.Sequential(fixed, nn.Conv2d(fixed.out_channels, width, kernel_size=1, bias=False))
    else:
        convolution = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), activation())


def conv2x2_stem(in_channels: int, activation: Activation, *, whitening: bool) -> nn.Sequential:
    """Return a 2x2 convolution and activation, without norm: (N, in_channels, H, W) to (N, channels, H - 1, W - 1).

    The channels, `conv2x2_stem_channels`, are the principal components of a 2x2 patch and their negatives: 24 for RGB
    images (cifar10-airbench).
    """
    # Built in either case: it draws random numbers, and the weights after it must not depend on whether it is used.
    convolution = nn.Conv2d(in_channels, conv2x2_stem_channels(in_channels), kernel_size=2)
    if whitening:
        convolution = Whitening(in_channels, kernel_size=2, padding=0, both_signs=True)
    return nn.Sequential(convolution, activation())


def conv2x2_stem_channels(in_channels: int) -> int:
    """Return the number of output channels of `conv2x2_stem`."""
    return 2 * 2 * 2 * in_channels


class Backbone(nn.Sequential):
    """The stages between stem and pooling, run one after another; subclasses set `out_channels`."""

    out_channels: int


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: (N, C, H, W) to (N, C).

    Not nn.AdaptiveMaxPool2d, whose gradient is not deterministic on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maximum over the last two dimensions."""
        if self.training and torch.compiler.is_compiling():
            # The gradient of amax goes to the values that equal the maximum. Compiled, it may compare values that are
            # not yet rounded to half precision with the rounded maximum, find none, and divide by zero
            # (https://github.com/pytorch/pytorch/issues/195214). The gradient of max goes to a position.
            return x.flatten(2).max(dim=2).values
        return x.amax(dim=(2, 3))


class GlobalAveragePool(nn.Module):
    """The mean of each channel: (N, C, H, W) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the last two dimensions."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class ConvNet(nn.Module):
    """Stem, backbone, global pooling and one linear layer, whose logits are multiplied by `logit_scale`.

    Images (N, C, H, W), normalised floats, to logits (N, num_classes).
    """

    def __init__(
        self, stem: nn.Module, backbone: nn.Module, pool: nn.Module, head: nn.Linear, *, logit_scale: float
    ) -> None:
        super().__init__()
        self.stem, self.backbone, self.pool, self.head = stem, backbone, pool, head
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, C, H, W)."""
        features = self.backbone(self.stem(images))  # (N, C, h, w)
        logits: Tensor = self.head(self.pool(features))
        return logits * self.logit_scale
