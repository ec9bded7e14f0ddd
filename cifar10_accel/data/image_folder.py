"""Data set of image files in class folders: `train/<class>/*.png` and `test/<class>/*.png`."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cifar10_accel.errors import InputError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SIDE = 32
MAX_PIXELS = 64_000_000  # a larger image takes over 200 MB to decode and is probably a decompression bomb

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # (N, 32, 32, 3) uint8, (N,) int64


def read(data_dir: Path) -> tuple[tuple[str, ...], Arrays, Arrays]:
    """Read all images of a folder data set.

    The classes are the folders in `train`; those in `test` must be among them. Files are read in alphabetical order;
    hidden files and files without an image suffix are skipped.

    Returns:
        Class names in alphabetical order, and the images (N, 32, 32, 3) uint8 and labels (N,) int64 of the training
        set and of the test set.

    Raises:
        InputError: A folder is missing or has no images, or an image cannot be read.
    """
    class_names = _subfolders(data_dir / "train")
    unknown = sorted(set(_subfolders(data_dir / "test")) - set(class_names))
    if unknown:
        raise InputError(f"{data_dir / 'test' / unknown[0]}: class without training images in {data_dir / 'train'}")
    return class_names, _read_split(data_dir / "train", class_names), _read_split(data_dir / "test", class_names)


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as RGB: (32, 32, 3) uint8.

    An image of another size is resized and centre-cropped. The EXIF orientation is applied, transparent pixels are
    composited on white, 16-bit greyscale is reduced to 8 bits.

    Raises:
        InputError: The file is missing, damaged, too large or not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
                return np.array(_to_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
    except Exception as error:  # decoders raise many types of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image ({reason}); repair or remove it") from None


def _read_split(split_dir: Path, class_names: tuple[str, ...]) -> Arrays:
    files = [(path, label) for label, name in enumerate(class_names) for path in _image_files(split_dir / name)]
    if not files:
        raise InputError(f"{split_dir}: contains no images; put them into one folder per class")
    images = np.empty((len(files), SIDE, SIDE, 3), dtype=np.uint8)
    for number, (path, _) in enumerate(files):
        images[number] = read_image(path)
    return images, np.array([label for _, label in files], dtype=np.int64)


def _subfolders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a folder data set has train/<class>/ and test/<class>/")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: contains no class folders; put the images into one folder per class")
    return tuple(names)


def _image_files(class_dir: Path) -> list[Path]:
    if not class_dir.is_dir():
        return []  # a class may be absent from the test set
    return sorted(
        path for path in class_dir.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    return image if image.size == (SIDE, SIDE) else ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC)
