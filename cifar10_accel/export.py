"""Writes a trained run in the forms that other programs read, each checked against the net before it is kept."""

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

from cifar10_accel import classifier
from cifar10_accel.classifier import Classifier
from cifar10_accel.data.cifar10 import Split, load
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.run_folder import RunFolder

Form = Literal["safetensors", "onnx", "torch-export", "hub"]
Function = Callable[[Tensor], Tensor]  # images (N, 3, 32, 32), floats in 0..1 -> logits (N, K)

BATCH = 500  # images at a time when an exported model is checked
TOLERANCE = 1e-4  # on each probability
CARD = Path(__file__).with_name("model_card.md.j2")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How an exported model compares with the run on the test images."""

    num_images: int
    num_equal: int  # whose most probable class is the same
    largest_difference: float  # of any probability

    @property
    def holds(self) -> bool:
        """Whether at most one class in 10,000 differs, and no probability by more than 1e-4."""
        return (self.num_images - self.num_equal) * 10_000 <= self.num_images and self.largest_difference <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"class equal on {self.num_equal:,} of {self.num_images:,} test images, "
            f"largest difference of a probability {self.largest_difference:.1e}"
        )


def export(source: Path, target: Path, *, form: Form) -> Parity:
    """Writes a run (its newest checkpoint) or one checkpoint to `target`; returns how it compares on the test images.

    Every form takes RGB floats in 0..1, (N, 3, 32, 32) for any N, and gives logits: the normalisation is
    inside. A model that does not behave like the original is not kept. Raises `InputError` for that and for a
    source without a checkpoint or test images, `SettingsError` for a target that exists or a missing package.
    """
    if target.exists():
        raise SettingsError(f"out: {target} is there already; give another --out or remove it")
    net, run = classifier.of_run(source)
    settings = run.settings()
    split = load(settings, seed=settings.seed).test
    aside = target.with_name(f"unchecked-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        parity = compare(net, WRITERS[form](net, run, aside), split)
        if not parity.holds:
            raise InputError(f"{source}: as {form} it is another model ({parity}) and was not kept; try another form")
        aside.rename(target)
    except ImportError as error:
        raise SettingsError(f"format: {form} needs {error.name}; pip install 'cifar10-accel[onnx]'") from None
    except OSError as error:
        raise SettingsError(f"out: {target} cannot be written ({error.strerror}); give another --out") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)
    return parity


@torch.inference_mode()
def compare(net: Classifier, exported: Function, split: Split) -> Parity:
    """Classes and probabilities of both on all images of the split."""
    num_equal, largest = 0, 0.0
    for start in range(0, len(split), BATCH):
        pixels = torch.from_numpy(split.images[start : start + BATCH])
        ours, theirs = net.probabilities(pixels), exported(pixels.permute(0, 3, 1, 2) / 255).softmax(dim=1)
        num_equal += int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
    return Parity(num_images=len(split), num_equal=num_equal, largest_difference=largest)


def _write_safetensors(net: Classifier, run: RunFolder, path: Path) -> Function:
    """The weights in one file, whose header says which net they are of."""
    save_model(net, str(path), metadata={"net": json.dumps(net.config), "class_names": json.dumps(net.class_names)})
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        read = Classifier(net=json.loads(header["net"]), class_names=json.loads(header["class_names"]))
        read.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return read.eval()


def _write_torch_export(net: Classifier, run: RunFolder, path: Path) -> Function:
    """A graph that torch.export.load runs without this package."""
    program = torch.export.export(net, _example(), dynamic_shapes=_any_number())
    with path.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(program, file)
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(net: Classifier, run: RunFolder, path: Path) -> Function:
    """A graph for ONNX runtimes: input `images`, output `logits`."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        torch.onnx.export(
            net, _example(), path, dynamo=True, dynamic_shapes=_any_number(), external_data=False,
            input_names=["images"], output_names=["logits"], verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(np.asarray(session.run(["logits"], {"images": images.numpy()})[0]))


def _write_hub(net: Classifier, run: RunFolder, folder: Path) -> Function:
    """A folder as the Hub wants it: weights, config and a model card; `Classifier.from_pretrained` reads it."""
    net.save_pretrained(folder)
    card = Template(CARD.read_text(), trim_blocks=True, lstrip_blocks=True)
    values = {"summary": run.read_json("summary.json"), "settings": run.settings(), "environment": run.read_json(
        "environment.json"), "class_names": net.class_names}  # fmt: skip
    (folder / "README.md").write_text(card.render(**values))
    with redirect_stdout(io.StringIO()):  # it says where it reads from
        return Classifier.from_pretrained(folder).eval()


def _example() -> tuple[Tensor]:
    return (torch.zeros(2, 3, 32, 32),)


def _any_number() -> dict[str, dict[int, torch.export.Dim]]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


WRITERS: dict[Form, Callable[[Classifier, RunFolder, Path], Function]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
    "hub": _write_hub,
}
