"""CSS sprites: many small images as one picture inside the page, each shown by its position in it."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

COLUMNS = 40
SHOWN_SIDE = 96  # CSS pixels of an image on the page, about
LARGEST_SIDE = 64  # pixels; larger images are scaled down, so that the page stays small
LOSSLESS_SIDE = 48
LARGEST_PICTURE = 16_383  # pixels along a side of a WebP file
MAX_BYTES = 2_200_000  # base64 adds a third; the page stays under 5 MB with its other pictures and its text


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A picture as a data URI, and the places of the images in it: (column, row) by the image's row."""

    url: str
    columns: int
    side: int  # of an image, in pixels of the picture
    places: dict[int, tuple[int, int]]

    @property
    def zoom(self) -> float:
        """CSS pixels for each pixel of an image: a whole number for small images, which keeps their pixels sharp."""
        return zoom(self.side)


def zoom(side: int) -> float:
    """Return the CSS pixels for each pixel of an image of this side."""
    return float(max(1, SHOWN_SIDE // side)) if side <= SHOWN_SIDE // 2 else SHOWN_SIDE / side


def make_sprite(images: Pixels, rows: Sequence[int]) -> Sprite:
    """Return a picture of these images, or of as many of them, from the first, as fit.

    It is lossless for images up to `LOSSLESS_SIDE`, of which the pixels can be seen; larger ones are compressed.

    Args:
        images: (N, S, S, 1 or 3), of any size S.
        rows: Images to take, in this order.
    """
    side = min(images.shape[1], LARGEST_SIDE)
    kept = list(rows)[: LARGEST_PICTURE // side * COLUMNS]
    encoded = _encode(images[kept], side)
    while len(encoded) > MAX_BYTES:  # the compression ratio is only known afterwards
        kept = kept[: int(len(kept) * 0.98 * MAX_BYTES / len(encoded))]
        encoded = _encode(images[kept], side)
    url = "data:image/webp;base64," + base64.b64encode(encoded).decode()
    places = {row: (place % COLUMNS, place // COLUMNS) for place, row in enumerate(kept)}
    return Sprite(url=url, columns=COLUMNS, side=side, places=places)


def rgb(images: Pixels) -> Pixels:
    """Return images (..., H, W, 1 or 3) with three channels; the grey value of one channel is repeated."""
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def scaled_down(images: Pixels, side: int) -> Pixels:
    """Return RGB images (N, S, S, 3) with a side of at most this number of pixels."""
    if images.shape[1] <= side:
        return images
    smaller = [Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS) for image in images]
    return np.array([np.asarray(image) for image in smaller], dtype=np.uint8).reshape(-1, side, side, 3)


def _encode(tiles: Pixels, side: int) -> bytes:
    """Return a WebP file of the tiles, row by row."""
    is_lossless = tiles.shape[1] <= LOSSLESS_SIDE
    rows = max(1, math.ceil(len(tiles) / COLUMNS))
    sheet = np.zeros((rows * COLUMNS, side, side, 3), dtype=np.uint8)
    sheet[: len(tiles)] = scaled_down(rgb(tiles), side)
    pixels = sheet.reshape(rows, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, COLUMNS * side, 3)
    file = io.BytesIO()
    # The fastest method: slower ones save a few percent and take several times as long.
    quality = 20 if is_lossless else 85
    Image.fromarray(pixels).save(file, format="WEBP", lossless=is_lossless, method=0, quality=quality)
    return file.getvalue()
