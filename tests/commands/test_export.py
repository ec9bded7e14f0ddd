"""Export: every format gives the run's predictions again, says what the model is, and tells how to train it again."""

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.commands.export import command as export_module
from cifar10_accel.commands.export import files, hub
from cifar10_accel.data.image_files import read_image
from cifar10_accel.data.synthetic import CLASS_NAMES
from cifar10_accel.errors import SettingsError
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.run_folder import RunFolder, locate_checkpoint
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

FORMS = ["safetensors", "onnx", "torch-export", "hub"]
# Settings unlike the recipe's, and in other forms than a plain number.
UNUSUAL = {
    "epochs": 2,
    "max_steps": 9,
    "augment": ("flip",),
    "nesterov": False,
    "ema_decay": 0.5,
    "tta": "flip",
    "max_lr": 0.015625,
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "the run"
    fit(Settings(**TINY | UNUSUAL, run_dir=folder))
    return folder


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def exported(run_folder: Path, form: str, out: Path) -> Path:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    done = call("export", run_folder, f"--format={form}", f"--out={out}")
    assert done.exit_code == 0, done.output
    return out


def code_blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, flags=re.S)


@pytest.mark.parametrize("form", FORMS)
def test_an_export_behaves_like_the_run(form: str, run_folder: Path, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / "models" / f"net.{ {'torch-export': 'pt2', 'hub': 'folder'}.get(form, form) }"
    done = call("export", run_folder, f"--format={form}", f"--out={out}")
    assert done.exit_code == 0, done.output
    assert "class equal on 80 of 80 test images" in done.stdout
    assert "not checked" not in done.stdout
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    for path in (out, *out.rglob("*")):
        assert path.is_dir() or path.stat().st_mode & 0o044 == 0o044, f"only its owner can read {path.name}"
    if form == "hub":
        assert {path.name for path in out.iterdir()} >= {"README.md", "config.json", "model.safetensors"}
        card = (out / "README.md").read_text()
        accuracy = json.loads((run_folder / "summary.json").read_text())["test/accuracy"]
        assert f"{accuracy:.2%}" in card
        assert "not CIFAR-10" in card
        assert Classifier.from_pretrained(out).class_names == CLASS_NAMES


def test_an_export_that_is_another_model_is_not_kept(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an export that lacks the normalisation."""

    def broken(model: Classifier, run: Any, path: Path) -> files.Function:
        path.write_text("a model")
        return model.model

    monkeypatch.setitem(export_module.WRITERS, "onnx", broken)
    done = call("export", run_folder, "--format=onnx", f"--out={tmp_path / 'net.onnx'}")
    assert done.exit_code == 3
    assert "another model (class equal on" in done.stderr
    assert not list(tmp_path.glob("*net.onnx"))


@pytest.mark.parametrize("name", ["file/net", "x" * 250, "x" * 300])
@pytest.mark.parametrize("form", ["safetensors", "torch-export", "hub"])
def test_a_place_that_cannot_be_written_is_one_line(form: str, name: str, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call("export", run_folder, f"--format={form}", f"--out={tmp_path / name}")
    assert done.exit_code == SettingsError.exit_code
    assert re.fullmatch(r"error: out: \S+ cannot be written \(.+\); give another --out\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- Metadata, with a model of gray images of another size ---


@pytest.fixture
def gray_model() -> Classifier:
    settings = {"model": "resnet18", "width": 4}
    images = {"size": 24, "channels": 1, "mean": [0.25], "std": [0.5]}
    return Classifier(model_settings=settings, class_names=["ä", 'b"|', "c"], images=images).eval()


def read_metadata(form: str, path: Path) -> dict[str, str]:
    """Return what a program without this package finds in the file."""
    if form == "safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return dict(file.metadata())
    if form == "onnx":
        import onnxruntime

        return dict(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map)
    extra: dict[str, Any] = {"metadata.json": ""}
    with path.open("rb") as file:
        torch.export.load(file, extra_files=extra)
    return dict(json.loads(extra["metadata.json"]))


@pytest.mark.parametrize("form", ["safetensors", "onnx", "torch-export"])
def test_a_file_says_what_the_model_takes_and_gives(form: str, gray_model: Classifier, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model"
    writers = {
        "safetensors": files.write_safetensors,
        "onnx": files.write_onnx,
        "torch-export": files.write_torch_export,
    }
    read = writers[form](gray_model, path)
    for number in (1, 7):  # any batch
        pixels = np.random.default_rng(number).integers(0, 256, (number, 24, 24, 1), dtype=np.uint8)
        assert export_module.compare(gray_model, read, pixels).holds
    found = read_metadata(form, path)
    assert json.loads(found["class_names"]) == ["ä", 'b"|', "c"]
    assert json.loads(found["images"]) == {"size": 24, "channels": 1, "mean": [0.25], "std": [0.5]}
    assert json.loads(found["input_range"]) == [0, 1]
    assert json.loads(found["normalization_is_included"]) is True
    assert found["input"] == "float32 (N, 1, 24, 24), gray values in 0..1"
    assert found["output"] == "float32 (N, 3), logits"
    assert found["producer"].startswith("cifar10-accel ")


class Tied(torch.nn.Module):
    """A model with one convolution under two names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.second(self.first(images).relu())
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_shares_weights_is_exported(form: str, run_folder: Path, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    model = Classifier(model_settings={"model": f"{__name__}:Tied"}, class_names=["a", "b"]).eval()
    read = export_module.WRITERS[form](model, locate_checkpoint(run_folder)[1], tmp_path / "model")  # type: ignore[index]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    assert export_module.compare(model, read, pixels).holds


# --- The folder for the Hub ---


class Scaled(torch.nn.Module):
    """A model with a buffer, for which it computes with the values of a tensor while it is built."""

    def __init__(self, num_classes: int, *, is_saved: bool = True) -> None:
        super().__init__()
        scales = [round(value, 3) for value in torch.linspace(0.1, 1, 3).tolist()]
        self.register_buffer("scale", torch.tensor(scales), persistent=is_saved)
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.mean(dim=(2, 3)) * self.scale)
        return logits


def unsaved(num_classes: int) -> torch.nn.Module:
    """Return a model with a buffer that no file has."""
    return Scaled(num_classes, is_saved=False)


class Complex(torch.nn.Module):
    """A model with complex weights."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes, dtype=torch.complex64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.mean(dim=(2, 3)).to(torch.complex64)).abs()
        return logits


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Tied", "second.weight is the same tensor as first.weight"),
        ("unsaved", "the buffer scale is not persistent"),
        ("Complex", "head.weight is complex"),
    ],
)
def test_a_folder_that_transformers_would_misread_has_no_code_for_it(
    name: str, reason: str, run_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Classifier(model_settings={"model": f"{__name__}:{name}"}, class_names=["a", "b"]).eval()
    read = hub.write_hub(model, locate_checkpoint(run_folder)[1], tmp_path / "hub")
    assert f"transformers does not, since {reason}" in capfd.readouterr().err
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert "auto_map" not in config
    assert "metadata" in config
    assert "transformers" not in (tmp_path / "hub" / "README.md").read_text()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(read(images), model(images))


def test_the_cards_code_runs(run_folder: Path, tmp_path: Path) -> None:
    card = (exported(run_folder, "hub", tmp_path / "hub") / "README.md").read_text()
    images = torch.rand(3, 3, 32, 32)
    values: dict[str, Any] = {"images": images}
    code = code_blocks(card, "python")[0].replace("THIS_FOLDER_OR_REPOSITORY", str(tmp_path / "hub"))
    exec(code, values)
    with torch.inference_mode():
        assert torch.equal(values["logits"], Classifier.from_run(run_folder)(images))


MODELS = {
    "the run": None,
    "whitened": {"model": "airbench94", "width": 8, "whitening": True, "identity_init": True, "norm_scale": False},
    "deep": {"model": "airbench96", "width": 8},
    "dilated": {"model": "depthwise_dilated", "width": 8},
    "resnet18": {"model": "resnet18", "width": 4},
    "one's own": {"model": f"{__name__}:Scaled"},
}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_transformers_loads_the_folder(
    settings: dict[str, Any] | None, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = exported(run_folder, "hub", tmp_path / "hub") if settings is None else tmp_path / "hub"
    model = Classifier.from_run(run_folder)
    if settings is not None:
        images = {"size": 32, "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]}
        model = Classifier(model_settings=settings, class_names=["a", "b"], images=images).eval()
        hub.write_hub(model, locate_checkpoint(run_folder)[1], folder)
    blocks = code_blocks((folder / "README.md").read_text(), "python")
    images = torch.rand(3, 3, 32, 32)
    values: dict[str, Any] = {"images": images}
    exec(blocks[1].replace("THIS_FOLDER_OR_REPOSITORY", str(folder)), values)
    with torch.inference_mode():
        assert torch.allclose(values["logits"], model(images), atol=1e-6)
    assert values["model"].config.id2label == dict(enumerate(model.class_names))
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    exec(blocks[2].replace("THIS_FOLDER_OR_REPOSITORY", str(folder)).replace(".jpg", ".png"), values)
    found = {entry["label"]: entry["score"] for entry in values["classify"]("photo.png", top_k=99)}
    expected = model.probabilities(torch.from_numpy(pixels)[None])[0]
    for name, probability in zip(model.class_names, expected.tolist(), strict=True):
        assert found[name] == pytest.approx(probability, abs=1e-4)
    # Of a photo that is no square both take the middle, within half a pixel; squeezed it would differ by 0.18.
    waves = np.sin(np.arange(64)[None, :, None] / 5) * np.sin(np.arange(40)[:, None, None] / 7 + np.arange(3))
    Image.fromarray((127 + 120 * waves).astype(np.uint8)).save("photo.png")
    given = values["classify"].image_processor(Image.open("photo.png"), return_tensors="pt")["pixel_values"][0]
    ours = torch.from_numpy(read_image(Path("photo.png"), 32)).permute(2, 0, 1) / 255
    assert (given - ours).abs().mean() < 0.05


class Branching(nn.Module):
    """A model whose path depends on the values of the images, which cannot be traced."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        return self.head(means if means.sum() > 0 else -means)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_model_that_cannot_be_traced_is_one_line(form: str, tmp_path: Path) -> None:
    given = {name: value for name, value in TINY.items() if name != "width"} | {"max_steps": 1}
    fit(Settings(**given, model=f"{__name__}:Branching", run_dir=tmp_path / "run"))
    done = call("export", tmp_path / "run", "--format", form, "--out", tmp_path / "model")
    assert done.exit_code == 3, done.output
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))  # torch logs more
    assert line.startswith(f"error: format: the model cannot be exported to {form} (")
    assert line.endswith("); give --format safetensors")
    assert len(line) < 500
    assert not (tmp_path / "model").exists()


def test_the_cards_command_trains_the_same_weights(run_folder: Path, tmp_path: Path) -> None:
    card = (exported(run_folder, "hub", tmp_path / "hub") / "README.md").read_text()
    (command,) = code_blocks(card, "sh")
    words = shlex.split(command)
    assert words[:2] == ["cifar10-accel", "train"]
    assert {"--width=4", "--epochs=2", "--max-steps=9", "--augment=flip", "--nesterov=false", "--tta=flip"} <= set(
        words
    )
    done = call(*words[1:], "--tracker=none", "--run-dir=again")
    assert done.exit_code == 0, done.output
    states = [checkpoint.load(checkpoint.newest(path / "checkpoints")) for path in (run_folder, Path("again"))]
    assert all(torch.equal(states[0].model[name], states[1].model[name]) for name in states[0].model)
    assert all(torch.equal(states[0].evaluated[name], states[1].evaluated[name]) for name in states[0].evaluated)


def test_the_card_of_an_earlier_checkpoint_has_no_accuracy(run_folder: Path, tmp_path: Path) -> None:
    last, earlier = run_folder / "checkpoints/step-000009", run_folder / "checkpoints/step-000006"
    of_last, of_earlier = (
        (exported(path, "hub", tmp_path / path.name) / "README.md").read_text() for path in (last, earlier)
    )
    assert "| test accuracy, last epoch" in of_last
    assert "%" not in of_earlier.partition("## Use")[0]
    assert "This is the model after step 6. The accuracy of the run was measured after step 9 and" in of_earlier
    assert of_last.partition("## Use")[2] == of_earlier.partition("## Use")[2]


def test_the_report_has_the_cards_command(run_folder: Path, tmp_path: Path) -> None:
    card = (exported(run_folder, "hub", tmp_path / "hub") / "README.md").read_text()
    page = (run_folder / "report.html").read_text()
    copied = [html.unescape(text) for text in re.findall(r'data-copy="([^"]*)"', page)]
    assert copied == [command.strip() for command in code_blocks(card, "sh")]


CARDS = {
    "cifar10": ({"dataset": "cifar10"}, "# resnet9, trained on CIFAR-10", "- uoft-cs/cifar10\n"),
    "cifar100": ({"dataset": "cifar100"}, "trained on ", "- uoft-cs/cifar100\n"),
    "folder": (
        {"dataset": "folder", "data_dir": "/home/me/birds"},
        "# resnet9, trained on the author's own images",
        "",
    ),
    "own": (
        {"dataset": "own.data:load", "model": "own.nets:Tiny"},
        "# own.nets:Tiny, trained on the author's data set own",
        "",
    ),
}


@pytest.mark.parametrize(("given", "title", "on_the_hub"), CARDS.values(), ids=CARDS)
def test_the_card_names_what_the_run_was_trained_on(
    given: dict[str, Any], title: str, on_the_hub: str, gray_model: Classifier, tmp_path: Path
) -> None:
    settings = Settings(recipe="resnet9", **given)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    card = hub.model_card(gray_model, RunFolder(tmp_path), step=0)
    assert title in card
    assert "/home/me" not in card
    head = card.split("---")[1]
    assert on_the_hub in head
    assert ("datasets:" in head) is bool(on_the_hub)
    assert "gray images of 24x24 pixels" in card
    if settings.dataset not in ("cifar10", "cifar100"):
        assert "CIFAR-10" not in card.upper().replace("CIFAR10-ACCEL", "")
        assert "cifar-10" not in head
    (command,) = code_blocks(card, "sh")
    for name, value in given.items():
        if name != "data_dir":
            assert f"--{name}={value}" in shlex.split(command)
    if "model" in given:
        assert "`own.nets`, which Python must find" in card
        assert "own.nets is code of the author's" in card
    if settings.dataset == "folder":
        assert "--data-dir=FOLDER" in command
        assert "FOLDER is the folder of the images" in card
