"""Files from others: reading them runs no code and writes nowhere else. docs/security.md quotes these tests."""

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_table import OpenFault
from official_files import archive_of, use_small_files, write
from PIL import Image
from training_commands import REPOSITORY, TINY, flags, run_python

from cifar10_accel.data.cifar_files import CIFAR10_PICKLED
from cifar10_accel.errors import InputError
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.settings import Settings

RUNS_NOTHING = "refused; the planted command never runs"

# The real commands, on official files of twenty images whose digests vouch for whatever is in them.
VOUCHED = """
import hashlib, sys
from dataclasses import replace
from pathlib import Path
import pytest
from official_files import use_small_files
from cifar10_accel import cli
from cifar10_accel.data.cifar_files import CIFAR10_PICKLED
from cifar10_accel.data.cifar_sources import OFFICIAL_SITE
use_small_files(pytest.MonkeyPatch())
site = OFFICIAL_SITE["cifar10"]
archive = Path("data", site.files[0].name)
if archive.exists():
    vouched = replace(site.files[0], digest=hashlib.md5(archive.read_bytes()).hexdigest())
    OFFICIAL_SITE["cifar10"] = replace(site, files=(vouched,))
for path in Path("data", CIFAR10_PICKLED.folder).glob("*"):
    CIFAR10_PICKLED.digests[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
cli.main(sys.argv[1:])
"""


class Touch:
    """Object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists if a planted command has run."""
    return tmp_path / "was-run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint, as someone else may have sent it."""
    settings = Settings(**(TINY | {"dataset": "synthetic", "precision": "no"}))
    state = checkpoint.CheckpointData(step=1, model={"w": torch.zeros(2)}, average=None, training={"optimizer": {}})
    checkpoint.save(tmp_path / "run" / "checkpoints", state, keep=2)
    (tmp_path / "run" / "settings.yaml").write_text(settings.to_yaml())
    return tmp_path / "run"


def vouch(path: Path, **changes: Any) -> None:
    """Write a manifest that matches the present files of a checkpoint."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": checkpoint._sha256(file)}
        for file in path.iterdir()
        if file.name != "manifest.json"
    }
    (path / "manifest.json").write_text(json.dumps({"format_version": 1, "step": 1, "files": files} | changes))


@pytest.mark.parametrize("name", ["training.pt", pytest.param("model.safetensors", marks=pytest.mark.long)])
def test_pickle_in_a_checkpoint(name: str, run: Path, marker: Path, tmp_path: Path, fault: OpenFault) -> None:
    """Even when the manifest vouches for it."""
    path = run / "checkpoints" / "step-000001"
    (path / name).write_bytes(pickle.dumps(Touch(marker), protocol=2))
    vouch(path)
    with fault(f"malicious pickle as {name}", expected=RUNS_NOTHING, code=3) as ended:
        done = run_python("-m", "cifar10_accel", "evaluate", "run", cwd=tmp_path)
        ended(done, "step-000001: not a checkpoint of this project")
        assert done.stderr.count("\n") == 1
        assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("no files", {"files": {}}),
        ("a list", {"files": []}),
        ("a step that is no number", {"step": "last"}),
    ],
)
def test_manifest_that_lies(name: str, changes: dict[str, Any], run: Path, fault: OpenFault) -> None:
    """In this process: every command reads checkpoints with the same function."""
    path = run / "checkpoints" / "step-000001"
    vouch(path, **changes)
    if name == "no files":
        (path / "model.safetensors").unlink()
    with fault(f"manifest of a checkpoint lies: {name}", expected="refused in one line", code=3):
        with pytest.raises(InputError) as caught:
            checkpoint.load(path)
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../outside", "{folder}/outside", "../step-000001/training.pt", ".."])
def test_manifest_that_names_files_elsewhere(name: str, run: Path, fault: OpenFault) -> None:
    """The file is there, with the size and digest of the manifest."""
    path = run / "checkpoints" / "step-000001"
    vouch(path)
    manifest = json.loads((path / "manifest.json").read_text())
    outside = path.parent / "outside"
    outside.write_bytes((path / "training.pt").read_bytes())
    given = name.format(folder=path.parent)
    files = manifest["files"] | {given: manifest["files"]["training.pt"]}
    vouch(path, files=files)
    with fault(f"manifest of a checkpoint names {name}", expected="refused in one line", code=3):
        with pytest.raises(InputError, match=r"step-000001: .*(not in its folder|bytes, not)") as caught:
            checkpoint.load(path)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", ["a pickle", "an array of objects"])
def test_pickle_as_predictions(content: str, marker: Path, tmp_path: Path, fault: OpenFault) -> None:
    """In this process: `Predictions.load` is the one place where any command reads them."""
    path = tmp_path / "predictions.npz"
    if content == "a pickle":
        path.write_bytes(pickle.dumps(Touch(marker)))
    else:
        names = ("index", "label", "prediction", "probabilities", "loss")
        np.savez(path, **{name: np.array([Touch(marker)], dtype=object) for name in names})
    with fault(f"malicious predictions.npz: {content}", expected=RUNS_NOTHING, code=3):
        with pytest.raises(InputError, match=r"predictions.npz: not readable") as caught:
            Predictions.load(path)
        assert caught.value.exit_code == 3
        assert not marker.exists()


@pytest.mark.parametrize("is_vouched_for", [False, pytest.param(True, marks=pytest.mark.long)])
def test_pickle_as_cifar_batch(
    is_vouched_for: bool, marker: Path, tmp_path: Path, fault: OpenFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = use_small_files(monkeypatch)[CIFAR10_PICKLED.folder]
    files["data_batch_2"] = pickle.dumps({b"labels": Touch(marker), b"data": None}, protocol=4)
    write(tmp_path / "data" / CIFAR10_PICKLED.folder, files)
    how = "with the right digest" if is_vouched_for else "with another digest"
    with fault(f"malicious pickle as CIFAR batch, {how}", expected=RUNS_NOTHING, code=3) as ended:
        if is_vouched_for:
            done = run_vouched("train", *flags(TINY | {"dataset": "cifar10"}), cwd=tmp_path)
            ended(done, "data_batch_2: is not a CIFAR-10 batch (UnpicklingError: it refers to pathlib.")
        else:
            done = run_python("-m", "cifar10_accel", "data", "verify", cwd=tmp_path)
            ended(done, "damaged, MD5 is")
        assert done.stderr.count("\n") == 1
        assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../evil", tarfile.REGTYPE),
        ("cifar-10-batches-py/../../evil", tarfile.REGTYPE),
        ("{tmp_path}/evil", tarfile.REGTYPE),
        ("cifar-10-batches-py/data_batch_1", tarfile.SYMTYPE),
        ("cifar-10-batches-py/data_batch_1", tarfile.LNKTYPE),
    ],
    ids=["parent", "parent inside", "absolute", "symbolic link", "hard link"],
)
def test_archive_member(
    name: str,
    kind: bytes,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    fault: OpenFault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even when the archive's digest vouches for it."""
    member = tarfile.TarInfo(name.format(tmp_path=tmp_path))
    member.type, member.linkname = kind, "" if kind == tarfile.REGTYPE else "../../evil"
    member.size = 4 if kind == tarfile.REGTYPE else 0
    files = use_small_files(monkeypatch)[CIFAR10_PICKLED.folder]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(archive_of(files, member))
    with fault(
        f"archive member: {request.node.callspec.id}", expected="refused; nothing is unpacked anywhere", code=3
    ) as ended:
        done = run_vouched("data", "fetch", cwd=tmp_path)
        ended(done, f"member '{member.name}'", "does not belong in it")
        assert done.stderr.count("\n") == 1
        assert not list(tmp_path.rglob("evil"))
        assert not list((tmp_path / "data").glob("cifar-10-batches*"))


@pytest.mark.long
def test_archive_without_evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive of the tests above is taken when nothing is added to it."""
    files = use_small_files(monkeypatch)[CIFAR10_PICKLED.folder]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(archive_of(files))
    done = run_vouched("data", "fetch", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "CIFAR-10 is in data\n"), done.stderr


def test_image_bomb(tmp_path: Path, fault: OpenFault) -> None:
    """Refused by its header, before a pixel is decoded; tests/data has more kinds of bad images."""
    for split in ("train", "test"):
        (tmp_path / "images" / split / "one").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / split / "one" / "0.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "images" / "train" / "one" / "bomb.png")  # 50 kB of file
    with fault("image of 20,000 x 20,000 pixels in a data set", expected="one line that names it", code=3) as ended:
        args = flags(TINY | {"dataset": "folder", "data_dir": "images"})
        done = run_python("-m", "cifar10_accel", "train", *args, cwd=tmp_path)
        ended(done, "bomb.png: cannot be read as an image", "400000000 pixels")
        assert done.stderr.count("\n") == 1


def run_vouched(*args: str, cwd: Path) -> Any:
    return run_python("-c", VOUCHED, *args, cwd=cwd, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests' / 'support'}")
