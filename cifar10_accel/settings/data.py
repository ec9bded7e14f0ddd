"""Settings of the data set and its augmentation."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from cifar10_accel.components import is_import_path
from cifar10_accel.settings.section import Positive, Section, built_in


class DataSettings(Section):
    """Data set and augmentation."""

    dataset: str = Field(
        "auto",
        json_schema_extra=built_in("auto", "cifar10", "cifar100", "synthetic", "folder"),
        description="cifar10; cifar100; synthetic (drawn, no download); folder (train/ and test/ of class folders); "
        "auto: cifar10 if it is there or can be had, else synthetic with a warning; "
        "or the import path of a function that returns a data set",
    )
    data_dir: Path = Field(Path("data"), description="where the data set is, or is downloaded to")
    synthetic_size: int = Field(
        20_000, ge=100, le=1_000_000, description="training images of the synthetic set (a fifth more for testing)"
    )
    image_size: int | None = Field(
        None, ge=8, le=256, description="side of the images of a folder data set, in pixels  (none: 32)"
    )
    val_size: int = Field(0, ge=0, description="images held out of the training set, stratified, for val/accuracy")
    augment: Annotated[tuple[str, ...], NoDecode] = Field(
        ("crop", "flip", "cutout"),
        json_schema_extra=built_in("crop", "flip", "cutout"),
        description="augmentations of the training images in their order, comma-separated; none for none; "
        "or import paths of functions that return Albumentations transforms",
    )
    crop_padding: int = Field(4, ge=1, le=128, description="pixels padded on each side before the random crop")
    pad_mode: Literal["reflect", "constant"] = Field(
        "reflect", description="content of the padding: the mirrored image or the mean colour"
    )
    flip_mode: Literal["random", "alternating"] = Field(
        "random",
        description="random: drawn for each image and epoch; alternating: drawn in the first epoch, "
        "then alternately flipped and not",
    )
    cutout_size: int = Field(
        8, ge=1, le=256, description="side of the square that cutout fills with the mean, in pixels"
    )
    mixup_alpha: Positive | None = Field(None, description="MixUp with weights from Beta(alpha, alpha); none: off")
    cutmix_alpha: Positive | None = Field(
        None,
        description="CutMix with areas from Beta(alpha, alpha); none: off; with mixup_alpha: one of the two, drawn "
        "for each batch",
    )
    augment_backend: Literal["auto", "batched", "albumentations"] = Field(
        "auto",
        description="batched: whole batches on the device; albumentations: image by image in loader workers; "
        "auto: batched if every transform has a batched form. Same pixels either way",
    )
    num_workers: int = Field(
        0, ge=0, le=256, description="loader processes per rank for the albumentations backend (0: in the main process)"
    )

    @property
    def is_own_dataset(self) -> bool:
        """True if the data set is the user's: an image folder, or an import path."""
        return self.dataset == "folder" or is_import_path(self.dataset)
