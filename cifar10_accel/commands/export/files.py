"""Export into one file: safetensors, ONNX, torch.export. Each writer returns the model as the file gives it back."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cifar10_accel.commands.export.metadata import ARGUMENTS, metadata
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.runs.checkpoint import contiguous_copies

Function = Callable[[Tensor], Tensor]  # images (N, C, H, W), floats in 0..1 -> logits (N, K)
METADATA_FILE = "metadata.json"  # in a torch.export archive


def write_safetensors(model: Classifier, path: Path) -> Function:
    """Write the weights, with the metadata in the header of the file."""
    save_file(contiguous_copies(model.state_dict()), path, metadata=metadata(model))
    with safe_open(path, framework="pt") as file:
        read = Classifier(**{name: json.loads(file.metadata()[name]) for name in ARGUMENTS})
        read.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return read.eval()


def write_torch_export(model: Classifier, path: Path) -> Function:
    """Write a graph that torch.export.load reads without this package; metadata.json is an extra file in it."""
    program = torch.export.export(model, _example(model), dynamic_shapes=_any_number())
    with path.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata(model), indent=1)})
    with path.open("rb") as file:
        return torch.export.load(file).module()


def write_onnx(model: Classifier, path: Path) -> Function:
    """Write a graph for ONNX runtimes: input `images`, output `logits`, and the metadata in `metadata_props`."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about internals of the exporter
        program = torch.onnx.export(
            model,
            _example(model),
            dynamo=True,
            dynamic_shapes=_any_number(),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata(model))
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(np.asarray(session.run(["logits"], {"images": images.numpy()})[0]))


def _example(model: Classifier) -> tuple[Tensor]:
    images = model.image_format
    return (torch.zeros(2, images.channels, images.size, images.size),)


def _any_number() -> dict[str, dict[int, torch.export.Dim]]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}
