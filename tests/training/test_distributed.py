"""Two processes over gloo: the same run as one, and every way to fail together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_commands import REPOSITORY, TINY, flags, run_python

from cifar10_accel.errors import SettingsError
from cifar10_accel.runs.dynamics import Dynamics
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import make_accelerator

# The command `cifar10-accel step-log`, which also prints the threads left before the interpreter is finalized.
STEP_LOG = """
import atexit
from pathlib import Path
def print_threads():
    print("threads:", *(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))
atexit.register(print_threads)
import sys
from cifar10_accel.cli import main
main(["step-log", *sys.argv[1:]])
"""


def step_log(cwd: Path, *, num_processes: int, **changes: Any) -> list[Any]:
    """Return LR, image indices and pixel hash of each step on `num_processes` processes.

    Fails if the number of processes is another, or if threads of gloo are left at the end, which could abort it.
    """
    (cwd / "steps.py").write_text(STEP_LOG)
    args = ["steps.py", "--out=steps.jsonl", "--steps=12", *flags(TINY | changes)]
    done = run_python(*args, cwd=cwd, num_processes=num_processes)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("threads:"), done.stdout.count("gloo")) == (num_processes, 0), done.stdout
    launched, *lines = map(json.loads, (cwd / "steps.jsonl").read_text().splitlines())
    assert launched["processes"] == num_processes
    return [[line["lr"], line["indices"], line["pixels"]] for line in lines]


@pytest.mark.parametrize(
    ("num_processes", "changes"),
    [
        (2, {}),
        (2, {"grad_accum_steps": 2}),
        (2, {"augment_backend": "albumentations", "num_workers": 2}),
        (1, {"augment_backend": "albumentations", "num_workers": 2, "grad_accum_steps": 2}),
        (3, {}),
    ],
)
def test_lr_order_and_pixels_are_those_of_one_process(
    num_processes: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    expected = step_log(tmp_path, num_processes=1)
    found = step_log(tmp_path, num_processes=num_processes, **changes)
    assert len(expected) == len(found) == 12
    for step, (one, other) in enumerate(zip(expected, found, strict=True)):
        for what, ours, theirs in zip(("LR", "order", "pixels"), one, other, strict=True):
            assert ours == theirs, f"first difference: {what} of step {step}"


def test_a_whole_run_on_two_processes(tmp_path: Path) -> None:
    """One folder, one writer, exact evaluation, metrics of all ranks' images, and an evaluation that agrees."""
    for count in (1, 2):
        args = flags(TINY | {"run_dir": tmp_path / f"run{count}"})
        done = run_python("-m", "cifar10_accel.train", *args, cwd=tmp_path, num_processes=count)
        assert done.returncode == 0, done.stderr
    one, two = (read_metrics(tmp_path / f"run{count}" / "metrics.jsonl") for count in (1, 2))
    assert json.loads((tmp_path / "run2" / "environment.json").read_text())["processes"] == 2
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line.get("lr") for line in one] == [line.get("lr") for line in two]
    assert one[0]["train/loss"] == pytest.approx(two[0]["train/loss"], abs=0.1)
    recorded = Dynamics.load(tmp_path / "run2" / "dynamics.npz")  # of each image, in 3 epochs of 6 steps
    for name, of_images in {"train/loss": recorded.loss, "train/accuracy": recorded.correct}.items():
        means = np.reshape([line[name] for line in two if name in line], (3, 6)).mean(axis=1)
        assert means == pytest.approx(of_images.mean(axis=1, dtype=float), rel=1e-3)
    predictions = np.load(tmp_path / "run2" / "predictions.npz")
    assert predictions["index"].tolist() == list(range(80))
    summary = json.loads((tmp_path / "run2" / "summary.json").read_text())
    again = run_python("-m", "cifar10_accel", "evaluate", "run2", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["test/accuracy"] == summary["test/accuracy"]


# Evaluates an untrained model, whose norm statistics differ between the ranks, on a test set that no number of ranks
# divides; prints the results, for which the statistics of rank 0 count.
EXACT = """
import json, sys
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.training.evaluation import evaluate_split
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.settings import Settings
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import build_state
settings = Settings(**json.loads(sys.argv[1]))
accelerator = make_accelerator(settings)
dataset = load_dataset(settings, seed=0)
model = build_state(RunSetup(accelerator, settings, dataset)).model
for buffer in model.buffers():
    buffer += accelerator.process_index
plain, tta = evaluate_split(accelerator, model, dataset.test, batch_size=7, tta=settings.tta)
if accelerator.is_main_process:
    print(json.dumps([len(plain.label), plain.accuracy(), plain.loss.tolist(), tta.accuracy()]))
"""


@pytest.mark.parametrize("tta", ["multicrop", "multicrop_uncertain"])
def test_evaluation_counts_every_image_once(tta: str, tmp_path: Path) -> None:
    (tmp_path / "exact.py").write_text(EXACT)
    settings = json.dumps(TINY | {"synthetic_size": 1005, "tta": tta})  # 201 test images
    found = []
    for count in (1, 2, 3):
        done = run_python("exact.py", settings, cwd=tmp_path, num_processes=count)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    for other in found[1:]:
        assert other[0] == found[0][0] == 201
        assert other[1] == found[0][1]
        assert other[2] == pytest.approx(found[0][2], abs=1e-5)
        assert other[3] == found[0][3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch_size": 45}, "give 44 or 46"), ({"max_lr": -1}, "max_lr: '-1'")],
)
def test_an_invalid_setting_is_reported_once(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    done = run_python("-m", "cifar10_accel.train", *flags(TINY | changes), cwd=tmp_path, num_processes=2)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1, done.stderr


def test_half_a_launch_is_refused(tmp_path: Path) -> None:
    done = run_python("-m", "cifar10_accel.train", *flags(TINY), cwd=tmp_path, WORLD_SIZE="2")
    assert done.returncode == 2, done.stderr
    assert "error: launch: " in done.stderr


def test_ranks_that_each_believe_to_be_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a launch for GPUs meets a machine where Accelerate finds none."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    with pytest.raises(SettingsError, match="WORLD_SIZE is 2 but Accelerate sees 1"):
        make_accelerator(Settings(**TINY))


def test_a_run_saved_by_two_continues_on_one(tmp_path: Path) -> None:
    args = flags(TINY | {"run_dir": tmp_path / "run"})
    done = run_python("-m", "cifar10_accel.train", *args, "--max-steps=8", cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    done = run_python("-m", "cifar10_accel.train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "saved by 2 process(es), continued by 1" in done.stdout
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "lr" in line] == list(
        range(1, 19)
    )


# Prints what two ranks have of a data set: its digest, whether it lies in a file, and what is left in the folder.
SHARED = """
import hashlib, json, os, sys
from accelerate.utils import gather_object
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.data.shared_memory import load_dataset_shared
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.settings import Settings
settings = Settings(**json.loads(sys.argv[1]))
accelerator = make_accelerator(settings)
if "NO_ROOM" in os.environ:
    import numpy
    def full(*_, **__): raise OSError("no space left on device")
    numpy.save = full
dataset, alone = load_dataset_shared(accelerator, settings), load_dataset(settings, seed=settings.seed)
def digests(dataset):
    splits = (dataset.train, dataset.val, dataset.test)
    return [hashlib.sha256(array.tobytes()).hexdigest() for split in splits for array in (split.images, split.labels)]
mapped = any("cifar10-accel-" in line for line in open("/proc/self/maps"))
found = gather_object([[accelerator.process_index, digests(dataset) == digests(alone), mapped]])
if accelerator.is_main_process:
    print(json.dumps(found))
"""


@pytest.mark.parametrize("has_room", [True, False])
def test_ranks_share_one_copy_of_the_images(has_room: bool, tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp")} | ({} if has_room else {"NO_ROOM": "1"})
    done = run_python("shared.py", json.dumps(TINY), cwd=tmp_path, num_processes=2, **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, True, has_room], [1, True, has_room]]
    assert done.stderr.count("every process loads its own copy of the images") == (0 if has_room else 1)
    assert not list((tmp_path / "tmp").glob("cifar10-accel-*"))


def test_data_that_one_rank_cannot_read_ends_all(tmp_path: Path) -> None:
    args = flags(TINY | {"dataset": "folder", "data_dir": tmp_path / "nothing"})
    done = run_python("-m", "cifar10_accel.train", *args, cwd=tmp_path, num_processes=2, timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "cifar10_accel/data/" not in done.stderr  # no traceback of ours


def test_the_range_test_is_the_same_on_two_processes(tmp_path: Path) -> None:
    curves = []
    for count in (1, 2):
        args = ["lr-range", *flags(TINY), "--steps=30", f"--out=out{count}"]
        done = run_python("-m", "cifar10_accel", *args, cwd=tmp_path, num_processes=count)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("curve: ") == 1
        curves.append(json.loads((tmp_path / f"out{count}" / "lr_range.json").read_text()))
    one, two = curves
    assert one["lr"][:10] == two["lr"][:10]
    assert one["loss"][0] == pytest.approx(two["loss"][0], abs=0.1)


def test_accelerate_launches_two_processes_on_a_cpu(tmp_path: Path) -> None:
    """The line for two CPU processes in docs/distributed.md."""
    config = REPOSITORY / "accelerate_config.yaml"
    command = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--multi_gpu", "--num_processes", "2"]
    done = run_python(*command, "-m", "cifar10_accel.train", *flags(TINY | {"run_dir": "run"}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
