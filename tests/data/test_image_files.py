"""Single image files of every kind: colours, value ranges, frames, orientation, and what is refused in which words."""

import struct
import sys
import types
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, TiffImagePlugin

from cifar10_accel.data import image_files
from cifar10_accel.data.image_files import Change, load_image, read_image
from cifar10_accel.errors import InputError

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)  # 0..1, in the whole range
GRAY = np.floor(RAMP * 255.999).astype(np.uint8)


def refusal(path: Path) -> str:
    """Return the words with which a file is refused, without its path: one line."""
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# --- colours ---


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("L", (32, 32), 77), "png", (77, 77, 77)),
        (Image.new("LA", (32, 32), (77, 255)), "png", (77, 77, 77)),
        (Image.new("LA", (32, 32), (77, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (32, 32), (255, 0, 0, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (32, 32), (1, 2, 3, 255)), "webp", (1, 2, 3)),
        (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "jpg", (254, 0, 0)),
        (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "tif", (255, 0, 0)),
        (Image.new("YCbCr", (32, 32), (76, 85, 255)), "jpg", (254, 0, 0)),
        (Image.new("RGB", (32, 32), (10, 200, 30)).quantize(), "gif", (10, 200, 30)),
        (Image.fromarray(np.full((32, 32), 0x8000, np.uint16)), "png", (128, 128, 128)),
        (Image.new("1", (32, 32), 1), "png", (255, 255, 255)),
        (Image.new("1", (32, 32), 1), "tif", (255, 255, 255)),
        (Image.new("RGB", (1, 1), (5, 6, 7)), "png", (5, 6, 7)),
        (Image.new("RGB", (640, 3), (5, 6, 7)), "bmp", (5, 6, 7)),
    ],
)
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, ...]
) -> None:
    path = tmp_path / f"\u00e9t\u00e9.{suffix}"
    image.save(path, lossless=True) if suffix == "webp" else image.save(path)
    for size in (32, 9):
        array = read_image(path, size)
        assert array.shape == (size, size, 3)
        assert array.dtype == np.uint8
        np.testing.assert_allclose(array.reshape(-1, 3), np.broadcast_to(expected, (size * size, 3)), atol=2)


def test_grayscale_on_request(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    array = read_image(tmp_path / "gray.png", 32, 1)
    assert array.shape == (32, 32, 1)
    np.testing.assert_array_equal(array[..., 0], GRAY)
    Image.new("RGBA", (90, 60), (255, 0, 0, 255)).save(tmp_path / "red.png")
    assert set(read_image(tmp_path / "red.png", 64, 1).flat) == {76}  # ITU-R 601


def test_a_colour_space_without_conversion_is_refused(tmp_path: Path) -> None:
    Image.new("LAB", (8, 8)).save(tmp_path / "a.tif")
    assert refusal(tmp_path / "a.tif") == "its colours have the form LAB, which is not read; save it as RGB"


# --- value ranges ---


def scaled(kind: Any, shape: tuple[int, ...] = (), highest: float | None = None) -> npt.NDArray[Any]:
    """Return the ramp with values of a type, in as many channels: 0 to the largest value, or `highest`."""
    if highest is None:
        highest = 1 if np.dtype(kind).kind == "f" else np.iinfo(kind).max
    return np.broadcast_to((RAMP * highest).astype(kind).reshape(32, 32, *[1] * len(shape)), (32, 32, *shape))


def write(path: Path, values: npt.NDArray[Any]) -> Path:
    assert cv2.imwrite(str(path), np.ascontiguousarray(values))
    return path


def write_tiff(path: Path, data: bytes, *, bits: int, tags: dict[int, int]) -> Path:
    """Write a TIFF of 32x32 uncompressed values, (tag: short) added."""
    entries = {256: 32, 257: 32, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: 32, 279: len(data)} | tags
    start = 8 + 2 + 12 * len(entries) + 4
    entries[273] = start
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data)
    return path


def packed_12_bits(values: npt.NDArray[Any]) -> bytes:
    one, two = values.reshape(-1, 2).astype(int).T
    return np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], axis=1).astype(np.uint8).tobytes()


@pytest.mark.parametrize("shape", [(), (3,)], ids=["gray", "rgb"])
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("png", np.uint16),
        ("tif", np.uint16),
        ("tif", np.int16),
        ("tif", np.uint32),
        ("tif", np.int32),
        ("tif", np.float32),
        ("tif", np.float64),
    ],
)
def test_values_of_every_type_are_scaled_by_their_range(
    tmp_path: Path, suffix: str, kind: Any, shape: tuple[int, ...]
) -> None:
    found = load_image(write(tmp_path / f"a.{suffix}", scaled(kind, shape)))
    np.testing.assert_allclose(found.pixels, np.broadcast_to(GRAY[..., None], (32, 32, 3)), atol=1)
    assert "scaled" in {change.kind for change in found.changes}


def test_jpeg_2000(tmp_path: Path) -> None:
    """Pillow reads the largest values of 16 bits in colour as black; all others it reads correctly."""
    path = tmp_path / "a.jp2"
    for values in (scaled(np.uint16), scaled(np.uint8), scaled(np.uint8, (3,))):
        np.testing.assert_allclose(read_image(write(path, values))[..., 0], GRAY, atol=2)
    assert "JPEG 2000 in colour with 16-bit values" in refusal(write(path, scaled(np.uint16, (3,))))


def test_channels_of_deep_images_keep_their_order(tmp_path: Path) -> None:
    for suffix, kind, one in (("png", np.uint16, 65535), ("tif", np.uint16, 65535), ("tif", np.float32, 1)):
        red = np.zeros((32, 32, 3), kind)
        red[..., 2] = one  # OpenCV writes BGR
        np.testing.assert_array_equal(read_image(write(tmp_path / f"a.{suffix}", red))[0, 0], (255, 0, 0))
    clear = np.zeros((32, 32, 4), np.uint16)
    clear[:16] = (0, 0, 65535, 65535)
    array = read_image(write(tmp_path / "clear.png", clear))
    assert (tuple(array[0, 0]), tuple(array[31, 31])) == ((255, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("bits", ["packed", "maximum", "16 bits, 10 used", "pgm"])
def test_fewer_bits_that_are_declared_count(tmp_path: Path, bits: str) -> None:
    """12 bits packed or in 16 with a declared maximum, also if no value of this image reaches it."""
    values = scaled(np.uint16, highest=4095)
    if bits == "packed":
        path = write_tiff(tmp_path / "a.tif", packed_12_bits(values), bits=12, tags={})
    elif bits == "maximum":
        path = write_tiff(tmp_path / "a.tif", values.astype("<u2").tobytes(), bits=16, tags={281: 4095})
    elif bits == "pgm":
        path = tmp_path / "a.pgm"
        path.write_bytes(b"P5 32 32 4095\n" + values.astype(">u2").tobytes())
    else:
        path = write_tiff(tmp_path / "a.tif", (values // 4).astype("<u2").tobytes(), bits=16, tags={281: 1000})
    np.testing.assert_allclose(read_image(path)[..., 0], GRAY, atol=1)


@pytest.mark.parametrize("sample_format", [1, 3])
def test_a_tiff_in_which_white_is_zero(tmp_path: Path, sample_format: int) -> None:
    values = scaled("<u2") if sample_format == 1 else scaled("<f4")
    tags = {262: 0, 339: sample_format}
    path = write_tiff(tmp_path / "a.tif", values.tobytes(), bits=8 * values.itemsize, tags=tags)
    np.testing.assert_allclose(read_image(path)[..., 0], 255 - GRAY, atol=1)


@pytest.mark.parametrize("shape", [(), (3,)], ids=["gray", "rgb"])
@pytest.mark.parametrize(
    ("suffix", "values", "words"),
    [
        ("tif", scaled(np.float32, highest=255), "its 32-bit float values are 0.0 to 255.0, expected 0 to 1"),
        ("tif", scaled(np.float32) * 2 - 1, "values are -1.0 to 1.0, expected 0 to 1"),
        ("tif", np.where(RAMP > 0.5, np.float32("nan"), np.float32(0.5)), "values are nan to nan, expected 0 to 1"),
        ("tif", scaled(np.uint16, highest=4095), "are 0 to 4095, of 0 to 65535: their true range is not known"),
        ("png", scaled(np.uint16, highest=255), "are 0 to 255, of 0 to 65535: their true range is not known"),
        ("tif", scaled(np.int32, highest=255), "are 0 to 255, of 0 to 2147483647: their true range is not known"),
        ("tif", scaled(np.int16) - 1000, "values are -1000 to 31767, expected 0 to 32767"),
    ],
)
def test_values_without_a_known_range_are_refused(
    tmp_path: Path, suffix: str, values: npt.NDArray[Any], words: str, shape: tuple[int, ...]
) -> None:
    whole = np.broadcast_to(values.reshape(32, 32, *[1] * len(shape)), (32, 32, *shape))
    assert words in refusal(write(tmp_path / f"a.{suffix}", whole))


def test_black_is_black(tmp_path: Path) -> None:
    for number, kind in enumerate((np.uint16, np.int32, np.float32)):
        assert read_image(write(tmp_path / f"{number}.tif", np.zeros((32, 32), kind))).max() == 0


def test_a_deep_image_that_is_damaged_or_huge(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / "a.tif", scaled(np.float32, (3,))).read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    refusal(tmp_path / "a.tif")
    tags = {256: 20_000, 257: 20_000, 339: 3}
    write_tiff(tmp_path / "b.tif", bytes(100), bits=64, tags=tags)
    assert "20000x20000 is more than 64000000 pixels" in refusal(tmp_path / "b.tif")
    assert capfd.readouterr() == ("", "")


# --- orientation and frames ---


@pytest.mark.parametrize("depth", ["8 bits", "16 bits"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_photo_is_turned_upright(tmp_path: Path, suffix: str, depth: str) -> None:
    pixels = np.zeros((32, 32), np.uint8 if depth == "8 bits" else np.uint16)
    pixels[:16] = np.iinfo(pixels.dtype).max
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: display the image rotated by 90 degrees clockwise
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    array = read_image(path)
    assert array[:, 16:].min() == 255
    assert array[:, :16].max() == 0


def test_all_orientations_are_those_of_pillow(tmp_path: Path) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            np.testing.assert_array_equal(read_image(tmp_path / "a.png"), ImageOps.exif_transpose(image))


def test_broken_exif_data_is_ignored_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(GRAY).save(path, quality=100, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(read_image(path)[..., 0], GRAY, atol=4)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_used(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    found = load_image(path)
    assert tuple(found.pixels[0, 0]) == (255, 0, 0)
    assert Change("first frame", "3") in found.changes


def test_what_was_changed_is_recorded(tmp_path: Path) -> None:
    def changes(image: Image.Image, **options: Any) -> set[Change]:
        image.save(tmp_path / "a.png", **options)
        return set(load_image(tmp_path / "a.png").changes)

    assert changes(Image.new("RGB", (32, 32))) == set()
    assert changes(Image.new("L", (32, 32))) == {Change("converted", "grayscale")}
    assert changes(Image.new("RGB", (64, 64))) == {Change("resized")}
    assert changes(Image.new("RGB", (64, 32))) == {Change("resized"), Change("cropped")}
    assert changes(Image.new("P", (32, 96))) == {
        Change("resized"),
        Change("panorama", "33%"),
        Change("converted", "palette"),
    }
    assert changes(Image.new("P", (32, 32)), transparency=0) == {Change("flattened")}


# --- what is no image ---


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header declares a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("fault", ["text", "empty", "truncated", "bomb", "large", "folder", "missing"])
def test_an_unreadable_image_is_named(tmp_path: Path, fault: str) -> None:
    path, whole = tmp_path / "bad.png", tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    if fault == "folder":
        path.mkdir()
    elif fault != "missing":
        path.write_bytes(
            {
                "text": b"this is not an image",
                "empty": b"",
                "truncated": whole.read_bytes()[:2000],
                "bomb": png_that_claims(20_000, 20_000),
                "large": png_that_claims(9_000, 9_000),
            }[fault]
        )
    assert refusal(path).startswith("cannot be read as an image (")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic", "pip install pillow-heif"),
        ("a.jpg", b"\0\0\0\x18ftypmif1", "pip install pillow-heif"),
        ("a.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "rsvg-convert"),
        ("a.svgz", b"\x1f\x8b\x08", "rsvg-convert"),
        ("a.png", b"%PDF-1.7", "convert a page of it to PNG"),
        ("a.gif", b"\0\0\0\x20ftypisom", "a video, not an image"),
        ("a.jxl", b"\xff\x0a\xfa", "JPEG XL needs a converter"),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_files_of_other_kinds_say_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, words: str
) -> None:
    image_files.heif_is_installed.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)
    image_files.heif_is_installed.cache_clear()


def test_pillow_heif_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    package = types.SimpleNamespace(register_heif_opener=lambda: calls.append(None))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)  # type: ignore[arg-type]
    image_files.heif_is_installed.cache_clear()
    assert image_files.heif_is_installed()
    assert len(calls) == 1
    image_files.heif_is_installed.cache_clear()


def test_the_tiff_writer_of_these_tests_writes_tiffs(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", GRAY.tobytes(), bits=8, tags={})
    with Image.open(path) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        np.testing.assert_array_equal(image, GRAY)
