"""Data sets of other libraries, and arrays of the user: what is accepted, and what is refused in one line."""

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar10_accel.data.conversion import to_dataset
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


class TorchvisionStyle:
    """Length, items of (PIL image, int) and class names, as torchvision's data sets have."""

    classes = ("ant", "bee", "cat")

    def __init__(self, images: np.ndarray[Any, Any] = IMAGES) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(LABELS[index])


@pytest.mark.parametrize(
    "found",
    [
        (TorchvisionStyle(), TorchvisionStyle()),
        {"train": TorchvisionStyle(), "test": TorchvisionStyle(), "validation": TorchvisionStyle()},
        {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS)},
        ((IMAGES, LABELS), (IMAGES, LABELS)),
    ],
)
def test_pairs_and_mappings_are_read(found: Any) -> None:
    dataset = to_dataset(found, name="own.data:load")
    assert np.array_equal(dataset.train.images, IMAGES)
    assert np.array_equal(dataset.test.labels, LABELS)
    assert (dataset.val is not None) is ("validation" in found)
    assert len(dataset.class_names) == 3


def test_class_names_of_torchvision_style() -> None:
    found = to_dataset((TorchvisionStyle(), TorchvisionStyle()), name="own")
    assert found.class_names == ("ant", "bee", "cat")


def test_hugging_face_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    names = ["ant", "bee", "cat"]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"img": [Image.fromarray(image) for image in IMAGES], "label": LABELS.tolist()}
    split = datasets.Dataset.from_dict(columns, features=features)
    dataset = to_dataset(datasets.DatasetDict(train=split, test=split), name="own")
    assert np.array_equal(dataset.train.images, IMAGES)
    assert dataset.class_names == tuple(names)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (16, 16), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (16, 16), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("LA", (16, 16), (77, 0)), (255, 255, 255)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("1", (16, 16), 1), (255, 255, 255)),
    ],
)
def test_pictures_of_other_colours_become_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    dataset = to_dataset(([(image, 0)], [(image, 0)]), name="own")
    assert (dataset.train.images == expected).all()
    assert dataset.train.images.shape == (1, 16, 16, 3)


RAMP = np.linspace(0, 65535, 256).reshape(16, 16)
HIGH_BYTES = (RAMP / 65535 * 255.999).astype(np.uint8)


def _transparent_palette() -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.info["transparency"] = 1
    return image


def test_a_transparent_colour_is_laid_over_white() -> None:
    dataset = to_dataset(([(_transparent_palette(), 0)],) * 2, name="own")
    assert dataset.train.images.min() == 255


@pytest.mark.parametrize("values", [RAMP.astype(np.uint16), RAMP.astype(np.int32), np.float32(RAMP / 65535)])
def test_pictures_of_more_bits_are_scaled_by_their_range(values: np.ndarray[Any, Any]) -> None:
    dataset = to_dataset(([(Image.fromarray(values), 0)],) * 2, name="own")
    assert dataset.train.images.shape == (1, 16, 16, 1)
    np.testing.assert_allclose(dataset.train.images[0, ..., 0].astype(int), HIGH_BYTES, atol=1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("LAB", (16, 16)), "dataset own, train: an image: its colours have the form LAB, which is not read"),
        (Image.new("I", (16, 16), 255), "their true range is not known"),
    ],
)
def test_pictures_that_are_not_read_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        to_dataset(([(image, 0)],) * 2, name="own")


def test_the_normalisation_of_many_images_is_measured_in_parts() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2345, 8, 8, 3), np.uint8)
    measured = ImageFormat.measure(images)
    values = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(measured.mean, values.mean(axis=0).round(4))
    np.testing.assert_allclose(measured.std, values.std(axis=0).round(4))


def test_greyscale_without_a_channel_axis_and_normalisation_measured_exactly() -> None:
    images = IMAGES[..., 0]
    dataset = Dataset(name="grey", train=(images, LABELS), test=(images, LABELS))
    assert dataset.train.images.shape == (12, 16, 16, 1)
    scaled = images / 255
    assert dataset.image_format.mean == (round(float(scaled.mean()), 4),)
    assert dataset.image_format.std == (round(float(scaled.std()), 4),)
    assert dataset.class_names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((IMAGES / 255, LABELS), "images are float64, expected uint8"),
        ((IMAGES.transpose(0, 3, 1, 2), LABELS), "channels first: transpose(0, 2, 3, 1)"),
        ((IMAGES[:, :8], LABELS), "shape (12, 8, 16, 3), expected (N, side, side, 1 or 3)"),
        ((IMAGES[:, :4, :4], LABELS), "4 pixels a side, expected 8 to 256"),
        ((IMAGES, LABELS[:5]), "labels are int64 of shape (5,), expected integers of shape (12,)"),
        ((IMAGES, LABELS / 2), "labels are float64"),
        ((IMAGES, LABELS + 1), "labels are 1 .. 3, expected 0 .. 2"),
        ((IMAGES, LABELS - 1), "labels are -1 .. 1, expected 0 .. 2"),
        ((IMAGES[:0], LABELS[:0]), "there are no images"),
        (IMAGES[0, 0, 0], "expected a pair (images, labels)"),
    ],
)
def test_arrays_of_another_kind_are_refused(part: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Dataset(name="own", train=(IMAGES, LABELS), test=part, class_names=["a", "b", "c"])
    assert "dataset own, test:" in str(caught.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, "gave a int; expected a Dataset, or a training and a test set"),
        ({"train": TorchvisionStyle()}, "expected a Dataset, or a training and a test set"),
        ((iter([1]), iter([2])), "has no length or items"),
        (([{"picture": 1}], [{"picture": 1}]), "items have picture; expected an image"),
        (([(IMAGES[0], 0), (IMAGES[0, :8], 0)], TorchvisionStyle()), "several shapes"),
    ],
)
def test_what_is_no_data_set_is_refused(found: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        to_dataset(found, name="own.data:load")


class NamedClasses(list[tuple[Any, int]]):
    """Items with the names of their classes, which each part numbers by itself, as torchvision's ImageFolder does."""

    def __init__(self, classes: list[str], labels: list[int]) -> None:
        super().__init__((IMAGES[label], label) for label in labels)
        self.classes = classes


def test_labels_are_matched_by_the_names_of_the_classes() -> None:
    """One class has no test images, and the hold-out has another order."""
    parts = {
        "train": NamedClasses(["ant", "bee", "cat"], [0, 1, 2]),
        "test": NamedClasses(["ant", "cat"], [0, 1, 1]),
        "valid": NamedClasses(["cat", "bee", "ant"], [0, 1, 2]),
    }
    dataset = to_dataset(parts, name="own")
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.test.labels.tolist() == [0, 2, 2]
    assert dataset.val is not None
    assert dataset.val.labels.tolist() == [2, 1, 0]
    parts["test"] = NamedClasses(["ant", "dog"], [0, 1])
    with pytest.raises(InputError, match=r"own, test: the training set has no class 'dog' \(it has ant, bee, cat\)"):
        to_dataset(parts, name="own")
    parts["test"] = NamedClasses(["ant", "cat"], [0, -1])  # as Hugging Face has images without a label
    with pytest.raises(InputError, match=r"own, test: labels are -1 \.\. 0 for 2 classes"):
        to_dataset(parts, name="own")


def test_parts_that_are_not_used_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    part = NamedClasses(["ant", "bee"], [0, 1])
    to_dataset({"train": part, "test": part, "unsupervised": part}, name="own")
    assert "dataset own: unsupervised not used, only train, test and val" in capfd.readouterr().err


def test_labels_that_are_no_whole_numbers_are_refused() -> None:
    part = [(IMAGES[0], 0.0), (IMAGES[1], 1.9)]
    with pytest.raises(InputError, match=r"own, train: a label is 1\.9; expected whole numbers"):
        to_dataset((part, part), name="own")
    whole = [(IMAGES[0], 0.0), (IMAGES[1], "1")]
    assert to_dataset((whole, whole), name="own").train.labels.tolist() == [0, 1]


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="own: two classes have the name 'crane'"):
        Dataset(name="own", train=(IMAGES, LABELS), test=(IMAGES, LABELS), class_names=["crane", "ox", "crane"])
