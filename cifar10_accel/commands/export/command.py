"""Export a trained run to other formats. Each file is compared with the original model before it is kept."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError

from cifar10_accel.commands.export import files, hub
from cifar10_accel.commands.export.files import Function
from cifar10_accel.errors import InputError, OutOfResourcesError, SettingsError, UserError
from cifar10_accel.files import output_of, use_default_permissions
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.runs.run_folder import RunFolder, locate_checkpoint
from cifar10_accel.runs.saved_run import SavedRun

Format = Literal["safetensors", "onnx", "torch-export", "hub"]
Pixels = npt.NDArray[np.uint8]

BATCH = 500  # images at a time when an exported model is checked
TOLERANCE = 1e-4  # on each probability
NUM_RANDOM_IMAGES = 256
# Of the format: function of (model, its checkpoint, the path to write).
WRITERS: dict[Format, Callable[[Classifier, Path, Path], Function]] = {
    "safetensors": lambda model, saved, path: files.write_safetensors(model, path),
    "onnx": lambda model, saved, path: files.write_onnx(model, path),
    "torch-export": lambda model, saved, path: files.write_torch_export(model, path),
    "hub": hub.write_hub,
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The comparison of an exported model with the original."""

    num_images: int
    num_equal: int  # with the same most probable class
    largest_difference: float  # of any probability
    kind: str = "test"  # of the images
    why_not_test: str = ""  # why they are not the test images

    @property
    def holds(self) -> bool:
        """True if at most one class in 10,000 differs, and no probability by more than 1e-4."""
        return (self.num_images - self.num_equal) * 10_000 <= self.num_images and self.largest_difference <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"class equal on {self.num_equal:,} of {self.num_images:,} {self.kind} images, "
            f"largest difference of a probability {self.largest_difference:.1e}"
        )


def export(source: Path, target: Path, *, form: Format, data_dir: Path | None = None) -> Parity:
    """Write a trained model to `target`, unless its predictions differ from those of the original.

    In every format the input is floats in 0..1, (N, C, H, W) for any N, and the output logits (N, K): the normalisation
    is part of the model. Nothing is downloaded: where the data set is not, random images are compared.

    Args:
        source: A run folder (its newest checkpoint is exported) or a checkpoint in one.
        target: File to write; a folder for the format "hub".
        form: The format.
        data_dir: Folder of the data set; None: by the environment, else where the run had it.

    Returns:
        The comparison with the original model.

    Raises:
        InputError: `source` has no checkpoint, the exported model differs, or the run's data set is not in `data_dir`.
        SettingsError: `target` exists or cannot be written, or a package is missing.
    """
    with output_of("out", target):
        if target.exists():
            raise SettingsError(f"out: {target} exists already; give another --out or remove it")
    run, saved = locate_checkpoint(source)
    model = Classifier.from_run(saved)
    images, why_not_test = _images(model, run, data_dir=data_dir)
    try:
        with output_of("out", target), _temporary(target) as temporary:
            with _explained(form):
                exported = WRITERS[form](model, saved, temporary)
            parity = compare(model, exported, images, why_not_test=why_not_test)
            if not parity.holds:
                raise InputError(
                    f"{source}: the {form} file is another model ({parity}) and was not kept; try another format"
                )
            for path in (temporary, *temporary.rglob("*")):
                if path.is_file():
                    use_default_permissions(path)
            temporary.rename(target)
    except ImportError as error:
        raise SettingsError(f"format: {form} needs {error.name}; pip install 'cifar10-accel[onnx]'") from None
    except SafetensorError as error:  # its own form of an OSError
        raise OutOfResourcesError(f"{target}: cannot be written ({error}); free some disk space") from None
    return parity


@contextmanager
def _explained(form: Format) -> Iterator[None]:
    """Context that turns what torch raises for a model that it cannot trace into an `InputError`."""
    try:
        yield
    except (UserError, ImportError, OSError, MemoryError, SafetensorError):
        raise
    except Exception as error:  # torch.export and torch.onnx have errors of their own, of many lines
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            f"format: the model cannot be exported to {form} ({reason}); give --format safetensors"
        ) from error


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Context of a path beside the target, for a file or a folder that is removed unless it was renamed.

    Raises:
        OSError: Nothing can be written there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"unchecked-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
    temporary.touch()  # some formats have errors of their own for a place that cannot be written
    temporary.unlink()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)


@torch.inference_mode()
def compare(model: Classifier, exported: Function, images: Pixels, *, why_not_test: str = "") -> Parity:
    """Compare classes and probabilities of both models on images (N, H, W, C), uint8."""
    num_equal, largest = 0, 0.0
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images[start : start + BATCH])
        ours, theirs = model.probabilities(pixels), exported(pixels.permute(0, 3, 1, 2) / 255).softmax(dim=1)
        num_equal += int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
    return Parity(
        num_images=len(images),
        num_equal=num_equal,
        largest_difference=largest,
        kind="random" if why_not_test else "test",
        why_not_test=why_not_test,
    )


def _images(model: Classifier, run: RunFolder, *, data_dir: Path | None) -> tuple[Pixels, str]:
    """Return the test images of a run or, without its data set, random ones and the reason."""
    try:
        return SavedRun.load(run.path, data_dir=data_dir).dataset().test.images, ""
    except UserError as error:
        if data_dir is not None:  # asked for
            raise
        side, channels = model.image_format.size, model.image_format.channels
        shape = (NUM_RANDOM_IMAGES, side, side, channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), str(error)
