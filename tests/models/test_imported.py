"""Models that are not built in: modules, factories, timm, torchvision."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar10_accel.components import named_objects
from cifar10_accel.data.image_format import CIFAR10_IMAGES, ImageFormat
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.models.registry import build_model
from cifar10_accel.settings import ModelSettings

GRAY = ImageFormat(16, 1, (0.5,), (0.25,))


class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, width: int = 7, wrap: Any = None) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(in_channels, width, 3), nn.Linear(width, num_classes)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        logits = self.head(self.convolution(images).relu().amax(dim=(2, 3)))
        if self.wrap == "in training":  # as torchvision's models with auxiliary classifiers
            return SimpleNamespace(logits=logits, auxiliary=3) if self.training else logits
        return {None: logits, "dict": {"logits": logits}, "object": SimpleNamespace(logits=logits)}.get(self.wrap, 3)


def without_number_of_classes() -> nn.Module:
    return Net(5, 3)


def any_keyword(**arguments: Any) -> nn.Module:
    return Net(arguments["num_classes"], 3)


INSTANCE = Net(10, 3)
HERE = __name__


def build(name: str, image_format: ImageFormat = CIFAR10_IMAGES, **settings: Any) -> nn.Module:
    sys.modules.setdefault(HERE, sys.modules[__name__])
    path = name if ":" in name else f"{HERE}:{name}"
    return build_model(ModelSettings(model=path, **settings), num_classes=10, image_format=image_format).eval()


@pytest.mark.parametrize("image_format", [CIFAR10_IMAGES, GRAY])
def test_a_class_gets_classes_channels_and_given_settings(image_format: ImageFormat) -> None:
    images = torch.randn(3, image_format.channels, image_format.size, image_format.size)
    model = build("Net", image_format)
    assert model(images).shape == (3, 10)
    assert model.convolution.out_channels == 7  # the settings' default width is not its own
    assert build("Net", image_format, width=12).convolution.out_channels == 12  # type: ignore[union-attr]
    assert build("any_keyword")(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("wrap", ["dict", "object", "in training"])
def test_logits_in_a_dict_or_an_object_become_a_tensor(wrap: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    wrapped = build("Net", model_args={"wrap": wrap})
    torch.manual_seed(0)
    plain = build("Net")
    assert torch.equal(wrapped(images), plain(images))
    assert torch.equal(wrapped.train()(images), plain(images))


def test_a_module_object_is_copied() -> None:
    model = build("INSTANCE")
    assert model is not INSTANCE
    assert torch.equal(model.head.weight, INSTANCE.head.weight)  # type: ignore[union-attr]


def instance() -> nn.Module:
    return INSTANCE


def test_a_module_to_which_the_function_refers_is_copied() -> None:
    """Else a second training in the process would start from the weights of the first."""
    existing = Net(10, 3)
    name = "object:factory@0"
    with named_objects({name: lambda: existing}):
        model = build(name)
    assert model is not existing
    assert torch.equal(model.head.weight, existing.head.weight)  # type: ignore[union-attr]
    assert build("instance") is not INSTANCE


def test_a_function_may_use_a_variable_that_has_no_value_yet() -> None:
    existing = Net(10, 3)

    def factory() -> nn.Module:
        return later if existing is None else existing

    with named_objects({"object:factory@0": factory}):
        model = build("object:factory@0")
    later = model
    assert model is not existing
    assert torch.equal(later.head.weight, existing.head.weight)  # type: ignore[union-attr]


def test_a_module_that_a_function_makes_is_not_copied() -> None:
    made = []

    def make() -> nn.Module:
        model = Uncopied(10, 3)
        made.append(model)
        return model

    with named_objects({"object:factory@0": make}):
        assert build("object:factory@0") is made[0]


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("Net", {"whitening": True}, SettingsError, "whitening: "),
        ("INSTANCE", {"width": 8}, SettingsError, "width: .* is a finished model"),
        ("Net", {"model_args": {"depth": 3}}, SettingsError, "does not take 'depth'"),
        ("Net", {"model_args": {"wrap": "number"}}, InputError, "returns a int, not logits"),
        ("without_number_of_classes", {}, InputError, r"returns \(2, 5\) for 2 images, expected \(2, 10\)"),
        ("HERE", {}, InputError, "is a str, not a model"),
        ("timm:resnet81", {}, SettingsError, "did you mean 'resnet18'"),
    ],
)
def test_what_is_no_model_is_one_line(name: str, settings: Any, error: type[Exception], message: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(error, match=message) as caught:
        build(name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224", "torchvision.models:resnet18"])
def test_models_of_timm_and_torchvision(name: str) -> None:
    pytest.importorskip(name.partition(":")[0].partition(".")[0])
    args = {"patch_size": 4} if "vit" in name else {}
    assert build(name, model_args=args)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_built_in_model_has_no_published_weights() -> None:
    with pytest.raises(SettingsError, match="no published weights"):
        build_model(ModelSettings(), num_classes=10, pretrained=True)


@pytest.mark.parametrize("model", ["resnet9", "resnet18", "depthwise_dilated", "airbench94", "airbench96"])
@pytest.mark.parametrize("image_format", [GRAY, ImageFormat(64, 3, (0.5,) * 3, (0.25,) * 3)])
def test_built_in_models_take_other_sizes_and_channels(model: str, image_format: ImageFormat) -> None:
    settings = ModelSettings(model=model, width=4, whitening=True)
    built = build_model(settings, num_classes=3, image_format=image_format).eval()
    images = torch.randn(2, image_format.channels, image_format.size, image_format.size)
    assert built(images).shape == (2, 3)


def test_images_that_are_too_small_are_one_line() -> None:
    with pytest.raises(InputError, match=r"airbench94 on an image \(1, 8, 8\) raised"):
        build_model(ModelSettings(model="airbench94"), num_classes=3, image_format=ImageFormat(8, 1, (0.5,), (0.2,)))


class Uncopied(Net):
    """A model that cannot be copied, as one with a lock or an open file."""

    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("cannot pickle '_thread.lock' object")


UNCOPIED = Uncopied(10, 3)


def test_a_module_object_that_cannot_be_copied_is_one_line() -> None:
    with pytest.raises(InputError, match=r"copying .*:UNCOPIED raised TypeError \(cannot pickle"):
        build("UNCOPIED")
