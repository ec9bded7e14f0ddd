"""One image file as an array: square, of a given size, RGB or grayscale, with a record of what was changed for that."""

import contextlib
import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar10_accel.data.deep_images import Samples, UnsupportedImage, deep_samples, deep_tiff, read_deep, to_8_bits
from cifar10_accel.errors import InputError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 64_000_000  # a larger image takes over 200 MB to decode and is probably a decompression bomb
PANORAMA = 2  # ratio of the sides above which more than half of an image is cut off

ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Modes of Pillow and their names; others, such as LAB, cannot be converted to RGB.
GRAY, RGB = frozenset({"1", "L"}), frozenset({"RGB"})
OTHER_MODES = {"P": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr", "HSV": "HSV", "RGBX": "RGBX"}
TRANSPARENT = frozenset({"LA", "PA", "RGBA", "RGBa"})

# Files that are no images for Pillow: signatures at an offset, and the remedy.
HEIC_SIGNATURES = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
FOREIGN = (
    (4, HEIC_SIGNATURES, "HEIC needs a package: pip install pillow-heif; or save it as JPEG"),
    (4, (b"ftypavif", b"ftypavis"), "AVIF needs a package: pip install pillow-avif-plugin; or save it as PNG"),
    (4, (b"ftyp",), "a video, not an image; save a frame of it as PNG"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL needs a converter; save it as PNG (djxl IN OUT.png)"),
    (0, (b"%PDF",), "a PDF, not an image; convert a page of it to PNG (pdftoppm -png IN OUT)"),
    (0, (b"version https://git-lfs",), "a Git LFS pointer, not the image itself; run `git lfs pull`"),
)
SVG = "SVG is a drawing without pixels; convert it to PNG (rsvg-convert IN -o OUT.png)"


class Change(NamedTuple):
    """Something that was done to an image."""

    kind: str  # a key of CHANGES
    detail: str = ""


CHANGES = {  # each as what was done to some images; {size} is the side in pixels
    "first frame": "reduced to the first of several frames",
    "scaled": "scaled to 8 bits per value",
    "turned": "turned upright, as their EXIF data says",
    "flattened": "laid over white, since they have an alpha channel",
    "converted": "converted to RGB",
    "panorama": "cropped by more than half, since their sides have a ratio above 2",
    "cropped": "cropped to the square in their middle",
    "resized": "resized to {size}x{size}",
}


class ImageFile(NamedTuple):
    """Content of an image file."""

    pixels: Pixels  # (size, size, channels) uint8
    changes: tuple[Change, ...]


def read_image(path: Path, image_size: int = 32, channels: int = 3) -> Pixels:
    """Return the pixels of an image file, (image_size, image_size, channels); see `load_image`."""
    return load_image(path, image_size, channels).pixels


def load_image(path: Path, image_size: int = 32, channels: int = 3) -> ImageFile:
    """Read an image file as RGB or grayscale pixels, and say what was changed.

    Of several frames the first is used. Values of more than 8 bits are scaled by their true range. The EXIF orientation
    is applied, transparent pixels are composited on white. An image of another size is resized and centre-cropped.

    Args:
        path: The file.
        image_size: Height and width of the result.
        channels: 3 for RGB, 1 for grayscale.

    Raises:
        InputError: The file is missing, damaged, too large, not an image, or of a kind that is not read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF data, and of large images: the limit here is lower
            image, changes = _decode(path)
            return _fit(image, changes, image_size, channels)
    except UnsupportedImage as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise many types of errors for damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        if unknown and (remedy := _remedy(path)):
            raise InputError(f"{path}: {remedy}") from None
        reason = "no known image format" if unknown else " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image ({reason}); repair or remove it") from None


def pixels_of(image: Image.Image) -> Pixels:
    """Return the pixels of an image in memory, converted as those of a file: (H, W) of a grayscale one, else (H, W, 3).

    Raises:
        UnsupportedImage: Values of more than 8 bits are not in their whole range, or its colours are not read.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        samples = Samples(32, "float") if image.mode == "F" else Samples(16)
        image = Image.fromarray(to_8_bits(np.asarray(image), samples))
    return np.asarray(_convert(image, [], 1 if image.mode == "L" else 3))


@cache
def heif_is_installed() -> bool:
    """Return True if HEIC files can be read: with the package pillow-heif."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except Exception:  # missing, or an installation that does not work here
        return False
    return True


def _decode(path: Path) -> tuple[Image.Image, list[Change]]:
    """Return the first frame in a mode of 8 bits, turned upright."""
    heif_is_installed()
    try:
        opened = Image.open(path)
    except UnidentifiedImageError:
        samples = deep_tiff(path, MAX_PIXELS)
        if samples is None:
            raise
        return read_deep(path, None, samples), [Change("scaled", str(samples))]
    changes = []
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
        frames = 1
        if image.format != "MPO":  # JPEG of a camera: its other pictures are previews
            with contextlib.suppress(Exception):  # the first frame may be intact
                frames = getattr(image, "n_frames", 1)
        if frames > 1:
            changes.append(Change("first frame", str(frames)))
        samples = deep_samples(image)
        image.load()
        orientation = 1
        with contextlib.suppress(Exception):  # of broken EXIF data nothing is used
            orientation = image.getexif().get(ORIENTATION, 1)
        decoded: Image.Image = image
        if samples is not None:
            decoded = read_deep(path, image, samples)
            changes.append(Change("scaled", str(samples)))
        if orientation in TURNS:
            decoded = decoded.transpose(TURNS[orientation])
            changes.append(Change("turned"))
        return decoded.copy(), changes


def _fit(image: Image.Image, changes: list[Change], size: int, channels: int) -> ImageFile:
    """Convert an image to the mode and size, and add what was changed."""
    image = _convert(image, changes, channels)
    if image.size != (size, size):
        short, long = sorted(image.size)
        if long > PANORAMA * short:
            changes.append(Change("panorama", f"{short / long:.0%}"))
        elif long > short:
            changes.append(Change("cropped"))
        changes.append(Change("resized"))
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return ImageFile(np.array(image, dtype=np.uint8).reshape(size, size, channels), tuple(changes))


def _convert(image: Image.Image, changes: list[Change], channels: int) -> Image.Image:
    """Return an image of 8 bits as RGB or grayscale, and add what was changed."""
    if image.mode not in GRAY | RGB | TRANSPARENT | OTHER_MODES.keys():
        raise UnsupportedImage(f"its colours have the form {image.mode}, which is not read; save it as RGB")
    if image.has_transparency_data:
        changes.append(Change("flattened"))
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    elif image.mode in GRAY and channels == 3:
        changes.append(Change("converted", "grayscale"))
    elif image.mode in OTHER_MODES:
        changes.append(Change("converted", OTHER_MODES[image.mode]))
    elif image.mode in RGB and channels == 1:
        changes.append(Change("converted", "RGB"))
    return image.convert("RGB" if channels == 3 else "L")


def _remedy(path: Path) -> str:
    """Return what a file that Pillow does not know needs; empty if it is no known kind."""
    with path.open("rb") as file:
        start = file.read(1024)
    for offset, signatures, remedy in FOREIGN:
        if start[offset:].startswith(signatures):
            return remedy
    return SVG if b"<svg" in start or path.suffix.lower() in (".svg", ".svgz") else ""
