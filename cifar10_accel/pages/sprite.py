"""Many small images as one picture inside the page: each is shown as a window on it."""

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
MAX_BYTES = 2_200_000  # a third more as text, which leaves a page under 5 MB room for other pictures and all words


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A picture as a data URI, and where in it the images are: (column, row) by number."""

    url: str
    columns: int
    places: dict[int, tuple[int, int]]


def sprite(images: Pixels, rows: Sequence[int], *, max_bytes: int = MAX_BYTES) -> Sprite:
    """As many of these rows of the images (N, 32, 32, 3), the first ones, as fit; lossless.

    max_bytes: of the picture's file.
    """
    kept = list(rows)
    encoded = _encoded(images[kept])
    while len(encoded) > max_bytes:  # how well images compress is only known afterwards
        kept = kept[: int(len(kept) * 0.98 * max_bytes / len(encoded))]
        encoded = _encoded(images[kept])
    url = "data:image/webp;base64," + base64.b64encode(encoded).decode()
    places = {row: (place % COLUMNS, place // COLUMNS) for place, row in enumerate(kept)}
    return Sprite(url=url, columns=COLUMNS, places=places)


def _encoded(tiles: Pixels) -> bytes:
    """A WebP file of the tiles, line by line."""
    lines = max(1, math.ceil(len(tiles) / COLUMNS))
    sheet = np.zeros((lines * COLUMNS, SIDE, SIDE, 3), dtype=np.uint8)
    sheet[: len(tiles)] = tiles
    pixels = sheet.reshape(lines, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2).reshape(lines * SIDE, COLUMNS * SIDE, 3)
    file = io.BytesIO()
    # The quickest method: slower ones save a few percent and take several times as long.
    Image.fromarray(pixels).save(file, format="WEBP", lossless=True, method=0, quality=20)
    return file.getvalue()
