"""Export a trained run to other formats. Each file is compared with the original model before it is kept."""

import io
import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jinja2 import Template
from safetensors import safe_open
from safetensors.torch import save_model
from torch import Tensor

from cifar10_accel.data.datasets import Split, load_dataset
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.files import use_default_permissions
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.runs.run_folder import RunFolder, locate_checkpoint

Format = Literal["safetensors", "onnx", "torch-export", "hub"]
Function = Callable[[Tensor], Tensor]  # images (N, 3, 32, 32), floats in 0..1 -> logits (N, K)

BATCH = 500  # images at a time when an exported model is checked
TOLERANCE = 1e-4  # on each probability
CARD = Path(__file__).with_name("model_card.md.j2")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The comparison of an exported model with the original on the test images."""

    num_images: int
    num_equal: int  # with the same most probable class
    largest_difference: float  # of any probability

    @property
    def holds(self) -> bool:
        """True if at most one class in 10,000 differs, and no probability by more than 1e-4."""
        return (self.num_images - self.num_equal) * 10_000 <= self.num_images and self.largest_difference <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"class equal on {self.num_equal:,} of {self.num_images:,} test images, "
            f"largest difference of a probability {self.largest_difference:.1e}"
        )


def export(source: Path, target: Path, *, form: Format) -> Parity:
    """Write a trained model to `target`, unless its predictions differ from those of the original.

    In every format the input is RGB floats in 0..1, (N, 3, 32, 32) for any N, and the output logits (N, K): the
    normalisation is part of the model.

    Args:
        source: A run folder (its newest checkpoint is exported) or a checkpoint in one.
        target: File to write; a folder for the format "hub".
        form: The format.

    Returns:
        The comparison with the original model on the test images.

    Raises:
        InputError: `source` has no checkpoint or no test images, or the exported model differs.
        SettingsError: `target` exists or cannot be written, or a package is missing.
    """
    if target.exists():
        raise SettingsError(f"out: {target} exists already; give another --out or remove it")
    model, run = Classifier.from_run(source), locate_checkpoint(source)[0]
    settings = run.settings()
    split = load_dataset(settings, seed=settings.seed).test
    temporary = target.with_name(f"unchecked-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        parity = compare(model, WRITERS[form](model, run, temporary), split)
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
    except OSError as error:
        raise SettingsError(f"out: {target} cannot be written ({error.strerror}); give another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)
    return parity


@torch.inference_mode()
def compare(model: Classifier, exported: Function, split: Split) -> Parity:
    """Compare classes and probabilities of both models on all images of the split."""
    num_equal, largest = 0, 0.0
    for start in range(0, len(split), BATCH):
        pixels = torch.from_numpy(split.images[start : start + BATCH])
        ours, theirs = model.probabilities(pixels), exported(pixels.permute(0, 3, 1, 2) / 255).softmax(dim=1)
        num_equal += int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
    return Parity(num_images=len(split), num_equal=num_equal, largest_difference=largest)


def _write_safetensors(model: Classifier, run: RunFolder, path: Path) -> Function:
    """Write the weights in one file, with the model's settings and class names in its header."""
    arguments = {"model_settings": model.model_settings, "class_names": model.class_names}
    save_model(model, str(path), metadata={name: json.dumps(value) for name, value in arguments.items()})
    with safe_open(path, framework="pt") as file:
        read = Classifier(**{name: json.loads(file.metadata()[name]) for name in arguments})
        read.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return read.eval()


def _write_torch_export(model: Classifier, run: RunFolder, path: Path) -> Function:
    """Write a graph that torch.export.load reads without this package."""
    program = torch.export.export(model, _example(), dynamic_shapes=_any_number())
    with path.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(program, file)
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(model: Classifier, run: RunFolder, path: Path) -> Function:
    """Write a graph for ONNX runtimes: input `images`, output `logits`."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about internals of the exporter
        torch.onnx.export(
            model,
            _example(),
            path,
            dynamo=True,
            dynamic_shapes=_any_number(),
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(np.asarray(session.run(["logits"], {"images": images.numpy()})[0]))


def _write_hub(model: Classifier, run: RunFolder, folder: Path) -> Function:
    """Write a folder for the Hugging Face Hub: weights, config and a model card."""
    model.save_pretrained(folder)
    card = Template(CARD.read_text(), trim_blocks=True, lstrip_blocks=True)
    values = {
        "summary": run.read_json("summary.json"),
        "settings": run.settings(),
        "environment": run.read_json("environment.json"),
        "class_names": model.class_names,
    }
    (folder / "README.md").write_text(card.render(**values))
    with redirect_stdout(io.StringIO()):  # it prints the path
        return Classifier.from_pretrained(folder).eval()


def _example() -> tuple[Tensor]:
    return (torch.zeros(2, 3, 32, 32),)


def _any_number() -> dict[str, dict[int, torch.export.Dim]]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


WRITERS: dict[Format, Callable[[Classifier, RunFolder, Path], Function]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
    "hub": _write_hub,
}
