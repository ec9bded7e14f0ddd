"""Image corruptions: six kinds with five severities each, to measure the robustness of a model.

The kinds are among those of Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261. Their strengths are chosen
here for 32x32 pixels, so errors are not comparable with those on CIFAR-10-C; numbers of pixels grow with the size of
the images. They are computed by torchvision, JPEG by Pillow.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cifar10_accel.randomness import seed_for

Pixels = npt.NDArray[np.uint8]

CHUNK = 1000  # images corrupted at a time; the noise of an image depends on it
SIZE = 32  # pixels a side, for which the strengths are given
BLUR_RADIUS = 4  # pixels at that size: almost three sigma of the strongest blur


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One kind of corruption; `strengths` are the values of `parameter` from mild to severe."""

    parameter: str
    strengths: tuple[float, ...]
    function: Callable[[Tensor, float], Tensor]  # (N, C, H, W) uint8 on the CPU, in and out


def _noise(images: Tensor, sigma: float) -> Tensor:
    noisy = F.gaussian_noise(F.to_dtype(images, torch.float32, scale=True), sigma=sigma)  # clipped to 0..1
    result: Tensor = F.to_dtype(noisy, torch.uint8, scale=True)
    return result


def _blur(images: Tensor, sigma: float) -> Tensor:
    scale = images.shape[-1] / SIZE
    kernel = 2 * max(1, round(BLUR_RADIUS * scale)) + 1
    blurred: Tensor = F.gaussian_blur(images, [kernel, kernel], [sigma * scale, sigma * scale])
    return blurred


def _pixelate(images: Tensor, side: float) -> Tensor:
    height, width = images.shape[-2:]
    squares = max(1, round(side * width / SIZE))
    small = F.resize(images, [squares, squares], InterpolationMode.BILINEAR, antialias=True)
    large: Tensor = F.resize(small, [height, width], InterpolationMode.NEAREST_EXACT)
    return large


def _jpeg(images: Tensor, quality: float) -> Tensor:
    return torch.stack([_jpeg_compressed(image, int(quality)) for image in images])


def _jpeg_compressed(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return torch.from_numpy(np.array(decoded).reshape(pixels.shape)).permute(2, 0, 1)


CORRUPTIONS = {
    "gaussian noise": Corruption(parameter="sigma, of 0..1", strengths=(0.04, 0.06, 0.08, 0.10, 0.12), function=_noise),
    "gaussian blur": Corruption(parameter="sigma, of 32 pixels", strengths=(0.5, 0.7, 0.9, 1.2, 1.5), function=_blur),
    "brightness": Corruption(parameter="factor", strengths=(1.2, 1.4, 1.6, 1.8, 2.2), function=F.adjust_brightness),
    "contrast": Corruption(parameter="factor", strengths=(0.7, 0.5, 0.35, 0.25, 0.15), function=F.adjust_contrast),
    "pixelate": Corruption(parameter="pixels, of 32 a side", strengths=(28, 24, 20, 16, 12), function=_pixelate),
    "jpeg": Corruption(parameter="quality", strengths=(80, 60, 40, 25, 15), function=_jpeg),
}


def corrupt(images: Pixels, name: str, strength: float, *, seed: int) -> Pixels:
    """Return the images with a corruption; the state of torch's global random generator is kept.

    Args:
        images: (N, H, W, C) uint8, C 1 or 3.
        name: A key of `CORRUPTIONS`.
        strength: The value of the corruption's parameter.
        seed: Equal seeds give equal noise.
    """
    function = CORRUPTIONS[name].function
    corrupted = np.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for start in range(0, len(images), CHUNK):
            torch.manual_seed(seed_for(seed, f"corruption {name} {strength:g}", start) >> 1)
            chunk = torch.from_numpy(images[start : start + CHUNK]).permute(0, 3, 1, 2).contiguous()
            corrupted[start : start + CHUNK] = function(chunk, strength).permute(0, 2, 3, 1).numpy()
    return corrupted
