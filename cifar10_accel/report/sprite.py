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
SIDE = 32
MAX_BYTES = 2_200_000  # base64 adds a third; the page stays under 5 MB with its other pictures and its text


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A picture as a data URI, and the places of the images in it: (column, row) by the image's row."""

    url: str
    columns: int
    places: dict[int, tuple[int, int]]


def make_sprite(images: Pixels, rows: Sequence[int], *, max_bytes: int = MAX_BYTES) -> Sprite:
    """Return a lossless picture of these images, or of as many of them, from the first, as fit.

    Args:
        images: (N, 32, 32, 3).
        rows: Images to take, in this order.
        max_bytes: Size limit of the encoded picture.
    """
    kept = list(rows)
    encoded = _encode(images[kept])
    while len(encoded) > max_bytes:  # the compression ratio is only known afterwards
        kept = kept[: int(len(kept) * 0.98 * max_bytes / len(encoded))]
        encoded = _encode(images[kept])
    url = "data:image/webp;base64," + base64.b64encode(encoded).decode()
    places = {row: (place % COLUMNS, place // COLUMNS) for place, row in enumerate(kept)}
    return Sprite(url=url, columns=COLUMNS, places=places)


def _encode(tiles: Pixels) -> bytes:
    """Return a WebP file of the tiles, row by row."""
    rows = max(1, math.ceil(len(tiles) / COLUMNS))
    sheet = np.zeros((rows * COLUMNS, SIDE, SIDE, 3), dtype=np.uint8)
    sheet[: len(tiles)] = tiles
    pixels = sheet.reshape(rows, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 3)
    file = io.BytesIO()
    # The fastest method: slower ones save a few percent and take several times as long.
    Image.fromarray(pixels).save(file, format="WEBP", lossless=True, method=0, quality=20)
    return file.getvalue()
