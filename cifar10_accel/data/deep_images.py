"""Image files with more than 8 bits per value (PNG, TIFF): conversion to 8 bits by the range that the file declares."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

Pixels = npt.NDArray[np.uint8]

# TIFF tags.
WIDTH, HEIGHT, BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 256, 257, 258, 262, 281, 339
SIGNED, FLOAT = 2, 3  # values of SAMPLE_FORMAT
WHITE_IS_ZERO, CMYK = 0, 5  # values of PHOTOMETRIC
FLOAT_TOLERANCE = 1e-3  # of floats 0..1, whose ends may be exceeded by rounding


class UnsupportedImage(Exception):
    """An image that is not read for the reason in the message, which says what to do."""


@dataclass(frozen=True)
class Samples:
    """Type of the values of an image file, as the file declares it."""

    bits: int
    kind: Literal["unsigned", "signed", "float"] = "unsigned"
    highest: int = 0  # largest possible value of an integer; 0 if only the type limits it
    white_is_zero: bool = False

    def __str__(self) -> str:
        return f"{self.bits}-bit float" if self.kind == "float" else f"{self.bits}-bit"

    @property
    def limit(self) -> int:
        """The largest possible value of an integer."""
        return self.highest or 2 ** (self.bits - (self.kind == "signed")) - 1


def deep_samples(image: ImageFile.ImageFile) -> Samples | None:
    """Return the type of the values of an opened file; None for at most 8 bits, which Pillow converts correctly.

    Raises:
        UnsupportedImage: JPEG 2000 in colour with more bits, of which Pillow reads the largest values as 0.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_samples(image.tag_v2)
    if image.format == "PNG":
        return Samples(16) if ";16" in str(image.tile[0].args) else None
    if image.format == "JPEG2000" and not image.mode.startswith("I") and (bits := _jpeg2000_bits(image)) > 8:
        raise UnsupportedImage(f"JPEG 2000 in colour with {bits}-bit values is not read; save it as PNG")
    if image.mode == "F":
        return Samples(32, "float")
    # Pillow scales other formats with more bits (PPM, JPEG 2000) to 16 bits by the maximum in their header.
    return Samples(16, highest=2**16 - 1) if image.mode.startswith("I") else None


def deep_tiff(path: Path, max_pixels: int) -> Samples | None:
    """Return the type of the values of a TIFF that Pillow does not know; None if the file is something else.

    Raises:
        UnsupportedImage: It has more pixels than `max_pixels`.
    """
    try:
        with path.open("rb") as file:
            header = file.read(8)
            if header[:4] not in TiffImagePlugin.PREFIXES:
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        if tags[WIDTH] * tags[HEIGHT] > max_pixels:
            raise UnsupportedImage(f"{tags[WIDTH]}x{tags[HEIGHT]} is more than {max_pixels} pixels; reduce it")
        return _tiff_samples(tags)
    except (OSError, KeyError, TypeError, ValueError, SyntaxError):
        return None


def read_deep(path: Path, image: Image.Image | None, samples: Samples) -> Image.Image:
    """Return an image in the mode L, RGB or RGBA, with values scaled to 8 bits.

    Integers are scaled by the range of their type, or by the bits or the largest value that the file declares; floats
    have to be 0..1. The orientation of a TIFF is applied, that of a PNG is not.

    Args:
        path: The file.
        image: The file as Pillow opened it; None if Pillow does not know its kind.
        samples: The type of its values.

    Raises:
        UnsupportedImage: The values are not what their type says.
        ValueError: The file is damaged.
    """
    if image is not None and (image.mode == "F" or image.mode.startswith("I")) and samples.bits <= 16:
        image.load()  # before the conversion to an array: it turns a TIFF upright
        values: npt.NDArray[Any] = np.asarray(image)
    else:
        values = _decode(path, samples)
    return Image.fromarray(to_8_bits(values, samples))


def to_8_bits(values: npt.NDArray[Any], samples: Samples) -> Pixels:
    """Return the values scaled to 0..255.

    Raises:
        UnsupportedImage: Floats are not 0..1; integers are negative, above the declared maximum, or use so little of
            the range of their type that it cannot be their true range.
    """
    lowest, highest = values.min(), values.max()
    seen = f"its {samples} values are {lowest.item()} to {highest.item()}"
    if samples.kind == "float":
        if not (lowest >= -FLOAT_TOLERANCE and highest <= 1 + FLOAT_TOLERANCE):  # also if one is nan
            raise UnsupportedImage(f"{seen}, expected 0 to 1; divide them by their largest possible value")
        scaled = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    else:
        if lowest < 0 or highest > samples.limit:
            raise UnsupportedImage(f"{seen}, expected 0 to {samples.limit}; save them as unsigned 8 or 16-bit values")
        if not samples.highest and 0 < highest < (samples.limit + 1) // 16:
            raise UnsupportedImage(
                f"{seen}, of 0 to {samples.limit}: their true range is not known; scale them to the whole range, or "
                "declare their maximum (TIFF tag MaxSampleValue)"
            )
        scaled = (values.astype(np.uint64) * 256 // (samples.limit + 1)).astype(np.uint8)
    result: Pixels = 255 - scaled if samples.white_is_zero else scaled
    return result


def _jpeg2000_bits(image: ImageFile.ImageFile) -> int:
    """Return the bits per value of a JPEG 2000 file: the first of its marker segment SIZ."""
    file = cast(IO[bytes], image.fp)
    file.seek(0)
    start = file.read(1 << 16)
    file.seek(0)
    return (start[start.index(b"\xff\x51") + 40] & 127) + 1


def _tiff_samples(tags: Any) -> Samples | None:
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    photometric = tags.get(PHOTOMETRIC)
    # Pillow reduces CMYK of 16 bits to 8: there the type's range is the true one, since paper is 0.
    if bits <= 8 or (photometric == CMYK and bits == 16):
        return None
    sample_format = max(tags.get(SAMPLE_FORMAT, (1,)))
    if sample_format == FLOAT:
        return Samples(bits, "float", white_is_zero=photometric == WHITE_IS_ZERO)
    highest = tags.get(MAX_SAMPLE_VALUE, 0)
    # To whole bits: the tag may hold the largest value of this image, and that is not its range.
    declared = 2 ** int(max(highest) if isinstance(highest, tuple) else highest).bit_length() - 1
    if not declared and bits not in (16, 32):  # an unusual number of bits is itself a declaration
        declared = 2**bits - 1
    return Samples(bits, "signed" if sample_format == SIGNED else "unsigned", declared, photometric == WHITE_IS_ZERO)


def _decode(path: Path, samples: Samples) -> npt.NDArray[Any]:
    """Decode a file by OpenCV, which keeps all bits: (H, W), or (H, W, C) with channels RGB or RGBA."""
    if samples.bits not in (16, 32, 64):  # OpenCV scales 10, 12 and 14 bits by itself
        raise UnsupportedImage(f"colour images with {samples} values are not read; save it with 8 or 16 bits")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # else its warnings are printed
    try:
        values = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if values is None:
        raise ValueError(f"damaged, or a kind of {samples} image that is not read")
    if values.ndim == 2:
        return np.asarray(values)
    if values.shape[2] not in (3, 4):
        raise UnsupportedImage(f"{values.shape[2]} channels; expected grayscale or RGB")
    return np.asarray(values[..., [2, 1, 0, 3][: values.shape[2]]])
