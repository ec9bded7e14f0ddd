"""Export into a folder for the Hugging Face Hub, which this package and transformers load."""

import io
import json
import logging
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from jinja2 import Template
from torch import nn

from cifar10_accel.commands.export.files import Function
from cifar10_accel.commands.export.metadata import metadata
from cifar10_accel.components import is_import_path
from cifar10_accel.files import write_text
from cifar10_accel.formatting import dataset_title
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.reproduce import reproduction
from cifar10_accel.runs.run_folder import RunFolder, locate_checkpoint

HERE = Path(__file__).parent
TEMPLATE_OPTIONS: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
MODELING = "modeling_cifar10_accel"
AUTO_MAP = {
    "AutoConfig": f"{MODELING}.Cifar10AccelConfig",
    "AutoModelForImageClassification": f"{MODELING}.Cifar10AccelForImageClassification",
}
# Of a run's data set: its name on the Hub.
ON_THE_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}

logger = logging.getLogger(__name__)


def write_hub(model: Classifier, saved: Path, folder: Path) -> Function:
    """Write weights, config, the code that transformers loads them with, and a model card.

    Args:
        model: The model.
        saved: Its checkpoint, in a run folder.
        folder: The folder to write.
    """
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"metadata": metadata(model)}
    obstacle = obstacle_for_transformers(model.model)
    if obstacle:
        logger.warning("hub: this package loads the folder, transformers does not, since %s", obstacle)
    else:
        config |= _for_transformers(model)
        shutil.copyfile(HERE / f"{MODELING}.py", folder / f"{MODELING}.py")
        if model.image_format.channels == 3:  # transformers opens every image as RGB
            write_text(folder / "preprocessor_config.json", json.dumps(_preprocessing(model), indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / "README.md", model_card(model, locate_checkpoint(saved)[0], step=checkpoint.step_of(saved)))
    with redirect_stdout(io.StringIO()):  # it prints the path
        return Classifier.from_pretrained(folder).eval()


def obstacle_for_transformers(model: nn.Module) -> str:
    """Return why transformers would give a model other values than its file has; empty if there is no reason.

    It looks up each tensor by its name in the file, and leaves one that it does not find there uninitialised.
    """
    saved = model.state_dict(keep_vars=True)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in saved:
            return f"the buffer {name} is not persistent"
        if tensor.is_complex():
            return f"{name} is complex"
    first_names = dict[int, str]()
    for name, tensor in saved.items():
        if first_names.setdefault(id(tensor), name) != name:
            return f"{name} is the same tensor as {first_names[id(tensor)]}"
    return ""


def model_card(model: Classifier, run: RunFolder, *, step: int) -> str:
    """Return the README.md of the folder: results, how to use the model, and the command that trains it again.

    Args:
        model: The model.
        run: Its run.
        step: The step after which the model was saved; only after the last one its accuracy is that of the run.
    """
    settings, environment = run.settings(), run.read_json("environment.json")
    template = Template((HERE / "model_card.md.j2").read_text(encoding="utf-8"), **TEMPLATE_OPTIONS)
    card: str = template.render(
        summary=run.read_json("summary.json"),
        step=step,
        settings=settings,
        environment=environment,
        class_names=model.class_names,
        images=model.image_format,
        for_transformers=not obstacle_for_transformers(model.model),
        trained_on=_trained_on(settings.dataset),
        hub_dataset=ON_THE_HUB.get(settings.dataset),
        has_built_in_model=not is_import_path(settings.model),
        reproduction=reproduction(settings, environment),
    )
    return card


def _trained_on(dataset: str) -> str:
    """Return what a person reads after `trained on`; only the real data set is called by its name."""
    if dataset == "folder":
        return "the author's own images"
    return f"the author's data set {dataset}" if is_import_path(dataset) else dataset_title(dataset)


def _for_transformers(model: Classifier) -> dict[str, Any]:
    names = dict(enumerate(model.class_names))
    return {
        "model_type": "cifar10-accel",
        "architectures": [AUTO_MAP["AutoModelForImageClassification"].partition(".")[2]],
        "auto_map": AUTO_MAP,
        "id2label": {str(number): name for number, name in names.items()},
        "label2id": {name: number for number, name in names.items()},
    }


def _preprocessing(model: Classifier) -> dict[str, Any]:
    side = model.image_format.size
    return {
        "image_processor_type": "CLIPImageProcessor",  # the one that crops the middle, as `predict` does
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,  # it is part of the model
    }
